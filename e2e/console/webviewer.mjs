// The viewer of web sessions, in front of a real remote browser: what is seen,
// typed, clicked, copied and carried over really arrives on the other side, and
// only where it may.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { accessible, check, config, main, person, phone, say, settled, shot, signInByAPI, watched, wide } from "./rig.mjs";
import { drive, network, pictured, ready, run, share, spot, until } from "./websession.mjs";

const sha = (data) => createHash("sha256").update(data).digest("hex");
const value = (site) => run(site, "return (document.getElementById('note')||{value:'no note'}).value");
const note = async (page, site) => {
  await drive(site, "/note");
  await until("the note is there", async () => (await run(site, "return String(document.activeElement && document.activeElement.id)")) === "note");
  await ready(site);
};
const clear = (site) => run(site, "const n = document.getElementById('note'); n.value = ''; n.focus(); return 1");
const holds = (site, want, what) => until(what, async () => {
  const got = await value(site);
  return got === want || `it holds ${JSON.stringify(got.slice(0, 200))}`;
});

await main(async (browser) => {
  const { full, plain, brief } = config;
  const context = await person(browser, { acceptDownloads: true, viewport: wide });
  await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: config.url });
  await signInByAPI(context, config.user);
  // What noVNC says when the network is gone.
  const expect = ["Disconnection timed out."];
  const page = await watched(context, "viewer", { expect });
  const picture = page.getByRole("application");

  // The picture is the target's page.
  const began = Date.now();
  await page.goto(`${config.url}/web?target=${full.name}`);
  await pictured(page, full, "the target's page");
  say(`from the address to the picture: ${Date.now() - began} ms`);
  const id = new URL(page.url()).pathname.split("/").pop();
  await page.getByText("Recording", { exact: true }).first().waitFor();

  // The remote screen follows the window.
  for (const size of [wide, { width: 1000, height: 700 }, wide]) {
    await page.setViewportSize(size);
    await until(`the session has the size of a window of ${size.width} by ${size.height}`, async () => {
      const box = await page.evaluate(() => {
        const c = document.querySelector('[role="application"] canvas:not([data-still])');
        const r = c?.parentElement?.getBoundingClientRect();
        return c && `${c.width}x${c.height} ${Math.floor(r.width)}x${Math.floor(r.height)}`;
      });
      const [a, b] = (box ?? " ").split(" ");
      const inside = await run(full, "return screen.width + 'x' + screen.height");
      return (a === b && a === inside && a.startsWith(String(size.width))) || `the picture has ${a}, the place ${b}, the session ${inside}`;
    });
  }

  // The watermark: what no page of the target has is on the picture.
  const marked = await share(page, full);
  check(marked < 0.999, `nothing is written over the picture: ${marked}`);

  // Clicks.
  await ready(full);
  await page.mouse.click(...(await spot(page, full, 'a[href="/note"]')));
  await until("the link was followed", async () => (await run(full, "return location.pathname")) === "/note");
  await until("the note is there", async () => (await run(full, "return document.activeElement.id")) === "note");
  await ready(full);
  // Keys.
  await picture.focus();
  await page.keyboard.type("Typed: a B c, 1+2=3 {x}");
  await holds(full, "Typed: a B c, 1+2=3 {x}", "what was typed arrives");

  // The clipboard, in by keys and out by itself.
  await clear(full);
  const long = Array.from({ length: 20_000 }, (_, i) => `line ${i} of a längeren text`).join("\n");
  await page.evaluate((t) => navigator.clipboard.writeText(t), long);
  await picture.focus();
  await page.keyboard.press("Control+v");
  await until("what was pasted arrives", async () => {
    const got = await run(full, "const n = document.getElementById('note'); const b = new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(n.value))); return [...b].map(x => x.toString(16).padStart(2, '0')).join('') + ' ' + n.value.length");
    return got.startsWith(sha(long)) || got;
  });
  await run(full, "const n = document.getElementById('note'); n.value = 'copied in the session: ü €'; n.focus(); n.select(); return 1");
  await page.keyboard.press("Control+c");
  await until("what was copied comes out", async () => {
    const got = await page.evaluate(() => navigator.clipboard.readText());
    return got === "copied in the session: ü €" || got.slice(0, 60);
  });
  // By the panel, for browsers that do not share the clipboard.
  await clear(full);
  await page.getByRole("button", { name: "Clipboard", exact: true }).click();
  const panel = page.getByRole("region", { name: "Clipboard" });
  await panel.getByLabel("Into the session").fill("by the panel");
  await accessible(page, "clipboard panel");
  await panel.getByRole("button", { name: "Send" }).click();
  await panel.getByText("The session has it now").waitFor();
  await shot(page, "viewer-clipboard");
  await panel.getByRole("button", { name: "Close the clipboard" }).click();
  await picture.focus();
  await page.keyboard.press("Control+v");
  await holds(full, "by the panel", "what the panel sent is pasted");

  // Files in: by the button, a folder by its button, and both dropped on the picture.
  const listed = async () => {
    const r = await context.request.get(`${config.url}/api/v1/web-sessions/${id}/files`);
    return ((await r.json()).files ?? []).filter((f) => !f.dir).map((f) => f.path).sort();
  };
  const content = async (path) => sha(await (await context.request.get(`${config.url}/api/v1/web-sessions/${id}/files/${encodeURIComponent(path)}`)).body());
  const remove = async (path) => {
    const r = await context.request.delete(`${config.url}/api/v1/web-sessions/${id}/files/${encodeURIComponent(path)}`);
    check(r.ok(), `remove ${path}: ${r.status()}`);
  };
  const arrived = async (names, what) => {
    await until(what, async () => {
      const have = await listed();
      return names.every((n) => have.includes(n)) || `there is ${have.join(", ")}`;
    });
  };
  const folder = Object.keys(config.folderFiles).map((n) => `folder/${n}`).sort();
  await page.getByRole("button", { name: "Files: upload and download" }).click();
  const files = page.getByRole("region", { name: "Files" });
  let chooser = page.waitForEvent("filechooser");
  await files.getByRole("button", { name: "Upload files" }).click();
  await (await chooser).setFiles(config.one);
  await arrived(["one.txt"], "the file arrives");
  check((await content("one.txt")) === config.oneSum, "the uploaded file is another one");
  await files.getByRole("link", { name: "one.txt" }).waitFor();
  chooser = page.waitForEvent("filechooser");
  await files.getByRole("button", { name: "Upload a folder" }).click();
  await (await chooser).setFiles(config.folder);
  await arrived(folder, "the folder arrives");
  for (const [n, text] of Object.entries(config.folderFiles)) check((await content(`folder/${n}`)) === sha(text), `folder/${n} arrived as something else`);
  await files.getByText("folder", { exact: true }).first().waitFor();
  await accessible(page, "files panel");
  await shot(page, "viewer-files");
  await remove("one.txt");
  await remove("folder");
  await until("everything is removed", async () => (await listed()).length === 0);
  const wire = await context.newCDPSession(page);
  const box = await picture.boundingBox();
  for (const [what, names] of [[config.one, ["one.txt"]], [config.folder, folder]]) {
    const data = { items: [], files: [what], dragOperationsMask: 1 };
    for (const type of ["dragEnter", "dragOver", "drop"]) await wire.send("Input.dispatchDragEvent", { type, x: Math.round(box.x + 200), y: Math.round(box.y + 200), data });
    await arrived(names, `what is dropped arrives: ${names}`);
  }
  await wire.detach();
  check((await content("one.txt")) === config.oneSum, "the dropped file is another one");

  // Files out: what the page downloads is listed, and saved by a click.
  await run(full, `const a = document.createElement('a'); a.href = '/files/report.bin?size=${config.size}'; setTimeout(() => a.click(), 100); return 1`);
  const link = files.getByRole("link", { name: "report.bin" });
  await link.waitFor();
  const saved = page.waitForEvent("download");
  await link.click();
  check(sha(readFileSync(await (await saved).path())) === config.sizeSum, "the download is another file");
  await files.getByRole("button", { name: "Close the files" }).click();
  await pictured(page, full, "the page after the panel");

  // The time that is left, and the whole page in the dark on a phone.
  await page.getByText(/(\d|min) left$/).first().waitFor();
  await accessible(page, "viewer light");
  await shot(page, "viewer-light-1280");
  await page.emulateMedia({ colorScheme: "dark" });
  await accessible(page, "viewer dark");
  await shot(page, "viewer-dark-1280");
  await page.setViewportSize(phone);
  await pictured(page, full, "the page on a phone");
  await accessible(page, "viewer dark phone");
  const sideways = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  check(sideways <= 0, `on a phone the page scrolls sideways by ${sideways} px`);
  await shot(page, "viewer-dark-390");
  await page.emulateMedia({ colorScheme: "light" });
  await shot(page, "viewer-light-390");
  await page.setViewportSize(wide);

  // Full screen and back.
  await page.getByRole("button", { name: /^Full screen/ }).click();
  await page.waitForFunction(() => document.fullscreenElement !== null);
  await pictured(page, full, "the page in full screen");
  await page.evaluate(() => document.exitFullscreen());
  await page.waitForFunction(() => document.fullscreenElement === null);

  // Somebody watches: the user is told, the watcher sees, and can do nothing.
  const office = await person(browser);
  await signInByAPI(office, config.admin);
  const watcher = await watched(office, "watcher", { expect });
  await watcher.goto(`${config.url}/web/${id}?watch=1`);
  await pictured(watcher, full, "what the watcher sees");
  await page.getByText(/is watching/).waitFor();
  await note(page, full);
  await picture.focus();
  await watcher.getByRole("application").focus();
  await watcher.keyboard.type("watcher");
  await watcher.mouse.click(...(await spot(watcher, full, "#note")));
  await watcher.keyboard.type("watcher");
  await page.bringToFront();
  await picture.focus();
  await page.keyboard.type("owner");
  await holds(full, "owner", "only the owner types");
  await accessible(watcher, "watching");
  await shot(watcher, "viewer-watch-light-1280");
  await watcher.emulateMedia({ colorScheme: "dark" });
  await shot(watcher, "viewer-watch-dark-1280");
  await watcher.emulateMedia({ colorScheme: "light" });

  // Locked by the watcher: the user is told why, and keys have no effect.
  const order = async (name) => {
    await watcher.bringToFront();
    await watcher.getByRole("button", { name: "What to do about it" }).click();
    await watcher.getByRole("menuitem", { name }).click();
  };
  await order("Lock…");
  await watcher.getByRole("dialog").getByLabel("Reason").fill("A look at this first");
  await watcher.getByRole("dialog").getByRole("button", { name: "Lock" }).click();
  await page.bringToFront();
  const alert = page.getByRole("alert").filter({ hasText: "This session is locked." });
  await alert.filter({ hasText: "A look at this first" }).waitFor();
  await accessible(page, "locked");
  await shot(page, "viewer-locked");
  await picture.focus();
  await page.keyboard.type("while locked");
  await order("Unlock");
  await page.bringToFront();
  await alert.waitFor({ state: "detached" });
  await picture.focus();
  await page.keyboard.type(" again");
  await holds(full, "owner again", "after unlocking keys arrive, and those before do not");

  // The network goes and comes back: so does the picture, by itself.
  await network("down");
  const lost = page.getByRole("status").filter({ hasText: "the picture comes back by itself" });
  await lost.waitFor({ timeout: 60_000 });
  await shot(page, "viewer-lost");
  await network("up");
  await lost.waitFor({ state: "detached", timeout: 60_000 });
  await pictured(page, full, "the picture after the network came back");
  await picture.focus();
  await page.keyboard.type(" and again");
  await holds(full, "owner again and again", "keys arrive after the network came back");

  // Terminated: the reason is shown, and what can be done next.
  await until("the watcher's picture is back", async () => (await share(watcher, full)) > 0.2);
  await order("Terminate…");
  await watcher.getByRole("dialog").getByLabel("Reason").fill("Maintenance begins");
  await watcher.getByRole("dialog").getByRole("button", { name: "Terminate" }).click();
  await page.bringToFront();
  const over = page.getByRole("alert").filter({ hasText: "Your session has ended" });
  await over.filter({ hasText: "Maintenance begins" }).waitFor();
  await over.getByRole("link", { name: "Open again" }).waitFor();
  await over.getByRole("link", { name: "My targets" }).waitFor();
  await accessible(page, "terminated");
  await shot(page, "viewer-terminated");
  await watcher.getByRole("alert").filter({ hasText: "The session has ended" }).waitFor();
  await watcher.close();
  await page.close();

  // Where the policy forbids: no button, no panel, and not one byte.
  const strict = await watched(context, "strict");
  await strict.goto(`${config.url}/web?target=${plain.name}`);
  await pictured(strict, plain, "the strict target's page");
  check((await share(strict, plain)) > marked, "a target without a watermark has as much on the picture as the one with it");
  check((await strict.getByRole("button", { name: /^Clipboard|^Files/ }).count()) === 0, "there are tools the policy forbids");
  await note(strict, plain);
  await strict.evaluate(() => navigator.clipboard.writeText("forbidden"));
  await strict.getByRole("application").focus();
  await strict.keyboard.press("Control+v");
  await strict.keyboard.type("typed");
  await holds(plain, "typed", "only what is typed arrives");
  await strict.keyboard.press("Control+a");
  await strict.keyboard.press("Control+c");
  await strict.keyboard.type("x");
  await holds(plain, "x", "the page had the keys that copy");
  check((await strict.evaluate(() => navigator.clipboard.readText())) === "forbidden", "something was copied out");
  // Ended by the user.
  await strict.getByRole("button", { name: "End the session" }).click();
  await strict.getByRole("dialog").getByRole("button", { name: "End it" }).click();
  await strict.getByRole("alert").filter({ hasText: "Your session has ended" }).waitFor();
  await strict.close();

  // Time: a notice with a button that extends, one that says somebody is there, and the end.
  const short = await watched(context, "brief");
  await short.goto(`${config.url}/web?target=${brief.name}`);
  await pictured(short, brief, "the brief target's page");
  const notice = (text) => short.getByRole("status").filter({ hasText: text });
  await notice("The longest permitted time is over in").waitFor();
  await accessible(short, "notice");
  await shot(short, "viewer-notice");
  await short.getByRole("button", { name: "Extend" }).click();
  await notice("The longest permitted time is over in").waitFor({ state: "detached" });
  await notice("Nobody uses this session").waitFor();
  await short.getByRole("button", { name: "I am here" }).click();
  await notice("Nobody uses this session").waitFor({ state: "detached" });
  const ended = short.getByRole("alert").filter({ hasText: "Your session has ended" });
  await ended.filter({ hasText: "not used for 70 seconds" }).waitFor({ timeout: 180_000 });
  await accessible(short, "ended for idleness");
  await shot(short, "viewer-idle");
  await ended.getByRole("link", { name: "My targets" }).click();
  await settled(short);
  say("the whole page");
});
