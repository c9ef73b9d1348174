// The player of web sessions: an address that is searched for is shown as it
// was, within 200 ms; playing, keys, pictures and videos work; nothing violates
// the policy.
import { accessible, check, config, main, person, say, settled, shot, signInByAPI, watched } from "./rig.mjs";

await main(async (browser) => {
  const context = await person(browser, { acceptDownloads: true, viewport: { width: 1440, height: 900 } });
  await signInByAPI(context, config.admin);
  const page = await watched(context, "player");

  // share tells which part of the picture shown is the one core draws of the
  // moment, the pointer apart.
  const share = (t) =>
    page.evaluate(async ([id, t]) => {
      const shown = [...document.querySelectorAll("canvas")].sort((a, b) => b.width * b.height - a.width * a.height)[0];
      const answer = await fetch(`/api/v1/recordings/${id}/picture?at=${t}`);
      const img = await createImageBitmap(await answer.blob());
      if (img.width !== shown.width || img.height !== shown.height) return 0;
      const own = new OffscreenCanvas(img.width, img.height).getContext("2d");
      own.drawImage(img, 0, 0);
      const a = own.getImageData(0, 0, img.width, img.height).data;
      const b = shown.getContext("2d").getImageData(0, 0, img.width, img.height).data;
      let same = 0;
      for (let i = 0; i < a.length; i += 4) same += a[i] === b[i] && a[i + 1] === b[i + 1] && a[i + 2] === b[i + 2];
      return same / (a.length / 4);
    }, [config.recording, t]);
  const shows = async (t, what) => {
    let part = 0;
    for (const until = Date.now() + 60_000; Date.now() < until; ) {
      if ((part = await share(t)) > 0.995) break;
      await page.waitForTimeout(50);
    }
    check(part > 0.995, `${what}: only ${(100 * part).toFixed(1)} % of the picture is that of ${t} s`);
  };

  const timeline = await (await context.request.get(`${config.url}/api/v1/recordings/${config.recording}/timeline?q=${encodeURIComponent(config.path)}&kind=request`)).json();
  const event = timeline.events[0];
  check(event, `no request to ${config.path} on record`);

  await page.goto(`${config.url}/recordings/${config.recording}`);
  await settled(page);
  await shows(0, "at the start");
  await accessible(page, "player");

  const search = page.getByLabel("Search in the events");
  await search.fill(config.path);
  const row = page.getByRole("listitem").getByRole("button").filter({ hasText: config.path }).first();
  await row.waitFor();
  const clicked = Date.now();
  await row.click();
  await shows(event.t, "after a click on the request");
  say(`from click to picture, with reading it back: ${Date.now() - clicked} ms`);
  await shot(page, "player-jump");

  // The moment is in the address, for those who are sent a link.
  const other = await watched(context, "link");
  await other.goto(`${config.url}/recordings/${config.recording}?t=${event.t}`);
  await settled(other);
  await other.waitForFunction((t) => Math.abs(Number(document.querySelector('[role="slider"][aria-label="Time"]')?.getAttribute("aria-valuenow")) - t) <= 1, event.t);
  await other.close();

  // Keys: from the start, to the end, and it stops there.
  const slider = page.getByRole("slider", { name: "Time" });
  await search.fill("");
  await slider.focus();
  await page.keyboard.press("Home");
  await shows(0, "after Home");
  await page.keyboard.press(">");
  await page.keyboard.press(">");
  await page.keyboard.press(">");
  // A short session is soon played: that it plays is seen by somebody who does not look away.
  await page.evaluate(() => {
    new MutationObserver(() => {
      window.played ||= document.querySelector('button[aria-label="Pause"]') !== null;
    }).observe(document.body, { subtree: true, childList: true, attributes: true });
  });
  await page.keyboard.press(" ");
  await page.waitForFunction(() => window.played);
  await page.getByRole("button", { name: "Play", exact: true }).waitFor({ timeout: 60_000 });
  const end = Number(await slider.getAttribute("aria-valuemax"));
  check(Math.abs(Number(await slider.getAttribute("aria-valuenow")) - end) <= 1, "playing did not come to the end");
  await shows(end + 1, "at the end");

  // A picture and a video.
  const saved = page.waitForEvent("download");
  await page.getByRole("link", { name: "Save this picture" }).click();
  check((await saved).suggestedFilename().endsWith(".png"), "the picture is no PNG");
  await page.getByRole("button", { name: "Video" }).click();
  await page.getByText("MP4 (H.264)").click();
  await page.getByRole("button", { name: "Make the video" }).click();
  const link = page.getByRole("link", { name: "Download" });
  await link.waitFor({ timeout: 90_000 });
  await accessible(page, "video");
  await shot(page, "player-video");
  const video = page.waitForEvent("download");
  await link.click();
  await (await video).saveAs(config.video);
  say(`video at ${config.video}`);
});
