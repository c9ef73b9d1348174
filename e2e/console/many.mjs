// Ten thousand targets: a page of them is there at once, a search answers while
// somebody types, the end is reached by scrolling, and only what is seen is in
// the document.
import { check, config, main, person, say, settled, signInByAPI, watched } from "./rig.mjs";

await main(async (browser) => {
  for (const [who, path, label] of [[config.user, "/targets", "Search targets"], [config.admin, "/admin/targets", "Find by name or address"]]) {
    const context = await person(browser);
    await signInByAPI(context, who);
    const page = await watched(context, path);
    let began = Date.now();
    await page.goto(`${config.url}${path}`);
    await settled(page);
    const rows = page.getByRole("table").getByRole("row");
    say(`${path}: first page after ${Date.now() - began} ms`);

    began = Date.now();
    await page.getByLabel(label).or(page.getByPlaceholder(label)).first().fill(config.last);
    await page.waitForFunction((name) => document.querySelectorAll('[role="row"]').length === 2 && document.body.innerText.includes(name), config.last);
    say(`${path}: one of ${config.count} found after ${Date.now() - began} ms`);
    await page.getByLabel(label).or(page.getByPlaceholder(label)).first().fill("");
    await page.waitForFunction(() => document.querySelectorAll('[role="row"]').length > 5);

    began = Date.now();
    let deepest = 0;
    while (deepest < config.far && Date.now() - began < 180_000) {
      await page.mouse.move(700, 500);
      await page.mouse.wheel(0, 20_000);
      deepest = await page.evaluate(() => Math.max(...[...document.querySelectorAll("[aria-rowindex]")].map((r) => Number(r.ariaRowIndex ?? r.getAttribute("aria-rowindex")))));
    }
    const inDocument = await rows.count();
    say(`${path}: row ${deepest} after ${Date.now() - began} ms of scrolling, ${inDocument} rows in the document`);
    check(deepest >= config.far, `${path}: scrolling ends at row ${deepest}`);
    check(inDocument < 100, `${path}: ${inDocument} rows in the document`);
    await context.close();
  }
});
