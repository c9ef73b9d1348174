// Keys that browsers keep for themselves (W19), pressed on a real screen: they
// act on this browser, and in the viewer's full screen on the session instead.
import { execFileSync } from "node:child_process";
import { check, config, main, person, say, signInByAPI, watched } from "./rig.mjs";
import { pictured, ready, run, share, until } from "./websession.mjs";

const env = { ...process.env, DISPLAY: config.display };
const xdotool = (...args) => execFileSync("xdotool", args, { env, encoding: "utf8", timeout: 60_000, stdio: ["ignore", "pipe", "pipe"] }).trim();

await main(async (browser) => {
  const { site } = config;
  const context = await person(browser, { viewport: null });
  await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: config.url });
  await signInByAPI(context, config.user);
  const page = await watched(context, "viewer");
  await page.goto(`${config.url}/web?target=${site.name}`);
  await pictured(page, site, "the target's page");
  await ready(site);
  // Pages under test believe that they always have the focus. This one has to
  // know when it has not: what is held down is let go then.
  const wire = await context.newCDPSession(page);
  await wire.send("Emulation.setFocusEmulationEnabled", { enabled: false });
  const picture = page.getByRole("application");

  // The page in the session notes the keys it gets. The note is also how it is
  // known again: one that is loaded anew has none.
  await run(site, `window.got = []; addEventListener("keydown", (e) => { if (e.key !== "Control") got.push((e.ctrlKey ? "Ctrl+" : "") + e.key) }); return 1`);
  const noted = (want, what) => until(what, async () => {
    const got = await run(site, "return window.got ? got.join(' ') : 'another page'");
    return got === want || `the session's page got: ${got}`;
  }, 60_000);
  const front = (want, what) => until(what, async () => {
    const part = await share(page, site);
    return part > 0.2 === want || `${Math.round(100 * part)} % of the picture is the page`;
  }, 60_000);

  // No window manager runs here: which window gets the keys is chosen by hand.
  // Windows are counted on the screen: not every one is of this context.
  const windows = () => xdotool("search", "--sync", "--onlyvisible", "--class", "chromium").split("\n");
  const [viewer] = windows();
  const focus = async () => {
    await page.bringToFront();
    xdotool("windowfocus", "--sync", viewer);
    await picture.focus();
    await page.waitForFunction(() => document.hasFocus());
  };
  const windowed = (n, what) => until(what, async () => {
    const all = windows();
    return all.length === n || `${all.length} windows`;
  }, 60_000);

  // The control: outside of full screen, tabs and windows are this browser's.
  await windowed(1, "one window at first");
  await focus();
  const tab = context.waitForEvent("page", { timeout: 60_000 });
  xdotool("key", "ctrl+t");
  const closed = (await tab).waitForEvent("close", { timeout: 60_000 });
  xdotool("key", "ctrl+w");
  await closed;
  await focus();
  xdotool("key", "ctrl+n");
  await windowed(2, "Ctrl+N opens a window here");
  xdotool("windowfocus", "--sync", windows().find((w) => w !== viewer));
  xdotool("key", "ctrl+w");
  await windowed(1, "Ctrl+W closes it");
  await focus();
  xdotool("key", "a");
  await noted("a", "the session's page got what is no key of this browser, and nothing else");

  // In full screen they are the session's.
  let opened = 0;
  context.on("page", () => opened++);
  await page.getByRole("button", { name: /^Full screen/ }).click();
  await page.waitForFunction(() => document.fullscreenElement !== null);
  await pictured(page, site, "the page in full screen");
  await focus();
  xdotool("key", "ctrl+n");
  await noted("a Ctrl+n", "Ctrl+N arrives");
  xdotool("key", "ctrl+t");
  await noted("a Ctrl+n Ctrl+t", "Ctrl+T arrives");
  await front(false, "Ctrl+T opens a tab in the session");
  xdotool("key", "ctrl+w");
  await front(true, "Ctrl+W closes it");
  // The last tab stays, and the session with it.
  xdotool("key", "ctrl+w");
  await noted("a Ctrl+n Ctrl+t Ctrl+w", "Ctrl+W arrives");
  xdotool("key", "ctrl+t");
  await noted("a Ctrl+n Ctrl+t Ctrl+w Ctrl+t", "the page is still there after Ctrl+W");
  await front(false, "there is a tab beside it");
  xdotool("key", "ctrl+w");
  await front(true, "the page is there again");
  // Esc is the session's, too, when it is not held.
  xdotool("key", "Escape");
  await noted("a Ctrl+n Ctrl+t Ctrl+w Ctrl+t Escape", "Esc arrives");
  check(await page.evaluate(() => document.fullscreenElement !== null), "Esc left full screen");
  await windowed(1, "in full screen this browser opened no window");
  check(opened === 0 && context.pages().length === 1 && !page.isClosed(), `in full screen this browser opened ${opened} pages, and has ${context.pages().length}`);
  check((await page.getByRole("alert").filter({ hasText: "has ended" }).count()) === 0, "the session has ended");

  // The way back without a mouse.
  xdotool("key", "ctrl+alt+Home");
  await page.getByRole("button", { name: "Leave full screen" }).click();
  await page.waitForFunction(() => document.fullscreenElement === null);
  say("all of them");
}, [], { headless: false, env });
