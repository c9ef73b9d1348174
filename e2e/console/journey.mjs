// What the product is for, in two browsers: an administrator opens a target to
// a user; the user finds it and connects in the terminal to the real sshd; the
// administrator watches, locks, unlocks and terminates; both find the recording.
import { accessible, check, config, main, person, say, settled, shot, signInByAPI, watched } from "./rig.mjs";

const call = async (context, method, path, data) => {
  const answer = await context.request.fetch(`${config.url}/api/v1${path}`, { method, data });
  if (!answer.ok()) throw new Error(`${method} ${path}: ${answer.status()} ${await answer.text()}`);
  return answer.status() === 204 ? undefined : answer.json();
};

await main(async (browser) => {
  const office = await person(browser);
  await signInByAPI(office, config.admin);
  const target = await call(office, "POST", "/targets", { name: "app-1", kind: "ssh", site: "vpc-a", host: config.host, comment: "made in the journey", accounts: [{ name: "root" }] });
  await call(office, "POST", "/grants", { role: config.role, target: target.id, accounts: ["*"], features: ["all"] });

  // The user signs in by the page and finds the target by typing.
  const desk = await person(browser);
  const user = await watched(desk, "user");
  await user.goto(`${config.url}/`);
  await user.getByLabel("User name").fill(config.user.name);
  await user.getByLabel("Password", { exact: true }).fill(config.user.password);
  await user.keyboard.press("Enter");
  const box = user.getByLabel("Search targets", { exact: true });
  await box.fill("app-");
  const row = user.getByRole("row").filter({ hasText: "app-1" });
  await row.waitFor();
  await user.getByRole("button", { name: "app-1 is a favourite" }).first().click();
  await user.getByRole("link", { name: "Connect as root on app-1" }).first().click();

  // A shell on the real host.
  const screen = user.locator(".xterm-helper-textarea").first();
  await screen.waitFor({ state: "attached" });
  const said = async (page, text) => {
    await page.waitForFunction((want) => {
      const shown = document.querySelector(".xterm-accessibility-tree, .xterm-rows")?.textContent ?? "";
      return shown.includes(want) || (document.body.innerText ?? "").includes(want);
    }, text, { timeout: 60_000 });
  };
  // The terminal's mark, not the page's link: from then on keys go somewhere.
  await user.getByText("Recording", { exact: true }).first().waitFor();
  await screen.focus();
  await user.keyboard.type("echo from-the-br''owser on $(hostname)\n", { delay: 5 });

  // The administrator sees the connection appear without loading anything again.
  const admin = await watched(office, "admin");
  await admin.goto(`${config.url}/connections?when=live`);
  await settled(admin);
  const live = admin.getByRole("row").filter({ hasText: "root on app-1" });
  await live.waitFor();
  const id = (await call(office, "GET", "/connections?live=true&limit=5")).items.find((c) => c.target_name === "app-1")?.id;
  check(id, "the live connection is not in the interface");

  const second = await watched(office, "watcher");
  await second.goto(`${config.url}/watch/${id}`);
  await second.getByRole("region", { name: "The terminal as its user sees it" }).waitFor();
  // What was there before the watcher came, and what comes now.
  await said(second, "from-the-browser");
  await screen.focus();
  await user.keyboard.type("echo seen-as-it-hap''pens\n", { delay: 5 });
  await said(second, "seen-as-it-happens");
  if (config.out) await shot(second, "journey-watch");
  await accessible(second, "watch");

  // Locked: the user's keys go nowhere; unlocked, they arrive again.
  await call(office, "POST", `/connections/${id}/lock`, { reason: "A look at this first", block_new: "none" });
  await user.getByText(/locked/i).first().waitFor();
  await admin.getByRole("row").filter({ hasText: "Locked" }).waitFor();
  await user.bringToFront();
  await screen.focus();
  await user.keyboard.type("echo typed-while-lo''cked\n", { delay: 5 });
  await call(office, "POST", `/connections/${id}/unlock`);
  await admin.getByRole("row").filter({ hasText: "Live" }).first().waitFor();
  // Until the user's page knows, it drops keys by itself.
  await user.getByRole("alert").filter({ hasText: "This session is locked" }).waitFor({ state: "detached" });
  await screen.focus();
  await user.keyboard.type("echo needle-in-the-jou''rney\n", { delay: 5 });
  // What was typed before would have been answered before.
  await said(second, "needle-in-the-journey");
  const shown = async (page) => page.evaluate(() => document.body.innerText);
  for (const page of [second, user]) check(!(await shown(page)).includes("typed-while-locked"), "keys typed while it was locked had an effect");
  const recording = (await call(office, "GET", `/connections/${id}`)).recording_id;

  await second.close();

  // Terminated with a reason: the user is told, the list shows it.
  await admin.bringToFront();
  await admin.goto(`${config.url}/connections/${id}`);
  await settled(admin);
  await admin.getByRole("button", { name: "Terminate" }).click();
  await admin.getByRole("dialog").getByLabel("Reason").fill("Maintenance begins");
  await admin.getByRole("dialog").getByRole("button", { name: "Terminate" }).click();
  await admin.getByText("Terminated", { exact: true }).first().waitFor();
  await user.getByText(/Maintenance begins/).first().waitFor();
  if (config.out) await shot(user, "journey-ended");

  // Replay: the transcript leads to the moment.
  await admin.getByRole("link", { name: "Play recording" }).click();
  await admin.locator(".ap-player, .ap-terminal, .ap-term").first().waitFor();
  await admin.getByLabel("Search in the transcript").fill("needle-in-the-journey");
  await admin.getByRole("button", { name: /needle-in-the-journey/ }).first().click();
  await admin.waitForFunction(() => !document.querySelector(".ap-overlay-start"));
  await admin.locator(".ap-term-text").filter({ hasText: "needle-in-the-journey" }).waitFor();
  const hits = async (text) => (await call(office, "GET", `/recordings/${recording}/search?q=${text}`)).hits?.length ?? 0;
  check((await hits("needle-in-the-journey")) > 0 && (await hits("typed-while-locked")) === 0, "the recording has what was typed while it was locked");
  if (config.out) await shot(admin, "journey-replay");

  // The user finds his own, and the target among recent and favourite ones.
  await user.goto(`${config.url}/recordings`);
  await user.getByRole("row").filter({ hasText: "root on app-1" }).first().waitFor();
  await user.goto(`${config.url}/targets?view=favourites`);
  await user.getByRole("row").filter({ hasText: "app-1" }).first().waitFor();
  await user.goto(`${config.url}/targets?view=recent`);
  await user.getByRole("row").filter({ hasText: "app-1" }).first().waitFor();
  say("the whole way");
});
