// What every script of the console's browser tests needs: Chromium, people who
// are signed in, a watch for everything a page complains about, axe, pictures.
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const modules = createRequire(new URL("../../core/internal/webui/package.json", import.meta.url));
const { chromium } = modules("playwright-core");
const axeSource = readFileSync(modules.resolve("axe-core/axe.min.js"), "utf8");

// config is what the Go side says on standard input.
export const config = JSON.parse(readFileSync(0, "utf8"));

export const say = (...words) => console.log(...words);

const failures = [];
// fail notes a failure and goes on; finish() ends the script with all of them.
export function fail(text) {
  failures.push(text);
  say(`FAIL ${text}`);
}

export function check(ok, text) {
  if (!ok) fail(text);
  return ok;
}

const program = ["/usr/bin/chromium", "/usr/bin/chromium-browser"].find(existsSync);

export async function launch(args = [], more = {}) {
  return chromium.launch({
    ...more,
    executablePath: program,
    args: [...args, "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--force-color-profile=srgb", "--font-render-hinting=none"],
  });
}

export const wide = { width: 1280, height: 800 };
export const phone = { width: 390, height: 844 };

// person is a browser profile of its own.
export async function person(browser, { viewport = wide, scheme = "light", reducedMotion = "reduce", ...more } = {}) {
  const context = await browser.newContext({ viewport, colorScheme: scheme, reducedMotion, ignoreHTTPSErrors: true, locale: "en-GB", timezoneId: "UTC", ...more });
  context.setDefaultTimeout(60_000);
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (e) => console.error(`policy violated: ${e.violatedDirective} ${e.blockedURI} ${e.sample}`));
  });
  return context;
}

// signInByAPI gives the profile a session without the page: for tests of other pages.
export async function signInByAPI(context, who) {
  const answer = await context.request.post(`${config.url}/api/v1/login`, { data: { username: who.name, password: who.password, cookie: true } });
  if (!answer.ok()) throw new Error(`sign ${who.name} in: ${answer.status()} ${await answer.text()}`);
}

// watched opens a tab that notes errors of scripts and violations of the policy.
export async function watched(context, label, { expect = [] } = {}) {
  const page = await context.newPage();
  const expected = (text) => expect.some((x) => text.includes(x));
  page.on("pageerror", (e) => expected(String(e)) || fail(`${label}: ${page.url()}: ${e.stack ?? e}`));
  page.on("console", (m) => {
    if (m.type() !== "error" || expected(m.text())) return;
    // Chromium reports refused requests itself; pages are judged by what they show.
    if (/Failed to load resource/.test(m.text())) return;
    fail(`${label}: ${page.url()}: ${m.text().slice(0, 600)}`);
  });
  return page;
}

// settled waits until the page has its heading and nothing loads, for a while.
export async function settled(page) {
  await page.waitForFunction(
    () => {
      const busy = !document.querySelector("h1") || document.querySelector('[aria-busy="true"], .mantine-Skeleton-root, [role="status"][aria-label="Loading"]');
      if (busy) window.quietSince = undefined;
      else window.quietSince ??= performance.now();
      return window.quietSince !== undefined && performance.now() - window.quietSince > 200;
    },
    undefined,
    { timeout: 60_000, polling: 50 },
  );
}

// accessible runs axe over what the page shows now.
export async function accessible(page, label) {
  // By the browser's own protocol: the page's policy lets nobody else add a script.
  const wire = await page.context().newCDPSession(page);
  await wire.send("Runtime.evaluate", { expression: axeSource });
  await wire.detach();
  if (!(await page.evaluate(() => Boolean(window.axe)))) throw new Error("axe did not load");
  const { violations } = await page.evaluate(() =>
    window.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"], resultTypes: ["violations"], rules: { region: { enabled: false } } }),
  );
  for (const v of violations) {
    fail(`${label}: ${v.id} (${v.impact}): ${v.help}: ${v.nodes.slice(0, 3).map((n) => `${n.target.join(" ")} ${n.failureSummary?.split("\n").slice(1, 2).join("")}`).join(" | ")}`);
  }
}

export async function shot(page, name) {
  mkdirSync(config.out, { recursive: true });
  await page.screenshot({ path: path.join(config.out, `${name}.png`), animations: "disabled", caret: "hide" });
}

// finish ends the script.
export async function finish(browser) {
  await browser.close();
  say(failures.length ? `${failures.length} failures` : "all good");
  process.exit(failures.length ? 1 : 0);
}

// main runs a script's body; whatever it throws is a failure with a picture.
export async function main(body, args, more) {
  const browser = await launch(args, more);
  try {
    await body(browser);
  } catch (e) {
    fail(e.stack ?? String(e));
    let i = 0;
    for (const context of browser.contexts()) for (const page of context.pages()) if (config.out) await shot(page, `failure-${++i}`).catch(() => undefined);
  }
  await finish(browser);
}
