// The viewer's sound: a button, off at first, where the target has sound; what
// the session's page plays then comes out of this browser's own player.
import { accessible, check, config, main, person, shot, signInByAPI, watched, wide } from "./rig.mjs";
import { pictured, ready, run, spot, until } from "./websession.mjs";

const button = (page) => page.getByRole("toolbar", { name: "Session" }).getByRole("button", { name: /sound/i });
const state = (page) => page.locator("[data-sound]").getAttribute("data-sound");
const is = (page, want) => until(`the sound is ${want}`, async () => {
  const got = await state(page);
  return got === want || `it is ${got}`;
});

await main(async (browser) => {
  const { loud, plain } = config;
  const context = await person(browser, { viewport: wide });
  await signInByAPI(context, config.user);
  const page = await watched(context, "sound");
  await page.goto(`${config.url}/web?target=${loud.name}`);
  await pictured(page, loud, "the target's page");
  await run(loud, config.tone);
  await ready(loud);
  await page.mouse.click(...(await spot(page, loud, "#tone")));
  await until("the tone plays", async () => (await run(loud, "return document.querySelector('#tone').dataset.done ?? 'no'")) === "1");
  check((await state(page)) === "off", `before anybody wants it the sound is ${await state(page)}`);
  // By keyboard: one press, and it plays.
  await button(page).focus();
  await page.keyboard.press("Enter");
  await is(page, "playing");
  check((await button(page).getAttribute("aria-pressed")) === "true", "the button does not say that it is pressed");
  await accessible(page, "viewer with sound");
  await shot(page, "viewer-sound");
  await button(page).focus();
  await page.keyboard.press("Enter");
  await is(page, "off");
  await button(page).click();
  await is(page, "playing");

  const other = await watched(context, "no sound");
  await other.goto(`${config.url}/web?target=${plain.name}`);
  await pictured(other, plain, "the other target's page");
  check((await button(other).count()) === 0, "a session without sound has a button for it");
});
