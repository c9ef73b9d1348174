// A fresh core: the first administrator is made with the code core printed,
// then a node is enrolled by the wizard. Prints the enrolment token.
import { accessible, check, config, main, person, say, settled, watched } from "./rig.mjs";

await main(async (browser) => {
  const context = await person(browser);
  const page = await watched(context, "first run");
  const began = Date.now();
  await page.goto(`${config.url}/`);
  await page.waitForSelector("h1");
  say(`first useful paint ${Math.round(await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? -1))} ms, heading after ${Date.now() - began} ms`);
  if (!page.url().includes("/setup")) await page.goto(`${config.url}/setup`);
  await settled(page);
  await accessible(page, "set up");

  await page.getByLabel("Set-up code").fill("aaaa-aaaa-aaaa");
  await page.getByLabel("User name").fill("admin");
  await page.getByLabel("Password", { exact: true }).fill(config.admin.password);
  await page.getByLabel("Password again").fill(config.admin.password);
  await page.keyboard.press("Enter");
  await page.getByRole("alert").filter({ hasText: /not right/ }).waitFor();
  await page.getByLabel("Set-up code").fill(config.code);
  await page.keyboard.press("Enter");
  await page.getByRole("navigation").first().waitFor();
  await settled(page);
  check((await page.textContent("h1")) === "Overview", `an administrator begins at ${await page.textContent("h1")}`);

  await page.getByRole("navigation", { name: "Pages" }).getByRole("link", { name: "Fleet" }).click();
  await page.getByRole("button", { name: "Enrol a node" }).first().click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Site").fill("vpc-a");
  await dialog.getByRole("button", { name: "Make the token" }).click();
  const code = dialog.locator("code").first();
  await code.waitFor();
  const text = await code.textContent();
  const token = /cap1\.[\w.-]+/.exec(text ?? "")?.[0];
  check(token, `no token in: ${text}`);
  say(`TOKEN ${token}`);
});
