// Forms: by the keyboard alone; saved; refused when somebody else was faster;
// and the commands that the enrolment wizard shows.
import { check, config, main, person, say, settled, watched } from "./rig.mjs";

await main(async (browser) => {
  const context = await person(browser);
  const page = await watched(context, "forms");

  // focused tells what has the focus, as its label or its text.
  const focused = () => page.evaluate(() => {
    const e = document.activeElement;
    return (e?.getAttribute("aria-label") || e?.labels?.[0]?.textContent || e?.textContent || "").replace(/\s*\*$/, "").trim();
  });
  const tabTo = async (name) => {
    for (let i = 0; i < 80; i++) {
      if ((await focused()) === name) return;
      await page.keyboard.press("Tab");
    }
    throw new Error(`the Tab key does not reach ${name}`);
  };

  await page.goto(`${config.url}/`);
  await page.getByLabel("User name").waitFor();
  await tabTo("User name");
  await page.keyboard.type(config.admin.name);
  await tabTo("Password");
  await page.keyboard.type(config.admin.password);
  await page.keyboard.press("Enter");
  await page.getByRole("navigation").first().waitFor();
  await page.keyboard.press("Control+k");
  await page.getByLabel("Search targets and pages").waitFor();
  await page.keyboard.type("Roles");
  await page.getByRole("button", { name: "Roles", exact: true }).waitFor();
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Roles", level: 1 }).waitFor();

  await page.goto(`${config.url}/admin/roles/${config.role}`);
  await settled(page);
  const dialog = page.getByRole("dialog").filter({ has: page.getByLabel("Comment") });
  const edit = async (comment) => {
    await tabTo("Edit");
    await page.keyboard.press("Enter");
    await dialog.waitFor();
    await tabTo("Comment");
    await page.keyboard.press("Control+a");
    await page.keyboard.type(comment);
  };
  await edit("Written by keys");
  await page.keyboard.press("Enter");
  await dialog.waitFor({ state: "hidden" });
  await page.getByText("Written by keys").waitFor();
  say("saved by the keyboard");

  // Somebody else saves while the form is open, and the page hears of it.
  await edit("Mine");
  const address = `${config.url}/api/v1/roles/${config.role}`;
  const old = await context.request.get(address);
  const { name, permissions } = await old.json();
  const theirs = await context.request.put(address, { data: { name, comment: "Theirs", permissions }, headers: { "If-Match": old.headers().etag } });
  check(theirs.ok(), `the other save: ${theirs.status()} ${await theirs.text()}`);
  await page.getByText("Theirs", { exact: true }).waitFor({ state: "attached" });
  await page.keyboard.press("Enter");
  await page.getByText("Somebody changed this meanwhile").waitFor();
  await page.getByRole("button", { name: "Load the new version" }).click();
  await dialog.waitFor({ state: "hidden" });
  check((await (await context.request.get(address)).json()).comment === "Theirs", "the other's change is lost");
  say("nobody's change is lost");

  await page.goto(`${config.url}/fleet`);
  await page.getByRole("button", { name: "Enrol a node" }).first().click();
  const wizard = page.getByRole("dialog");
  await wizard.getByLabel("Site").fill("vpc-a");
  await wizard.getByRole("button", { name: "Make the token" }).click();
  for (const [tab, word] of [["By hand", "caponier-extender"], ["systemd", "systemctl"], ["Docker", "docker"]]) {
    await wizard.getByRole("tab", { name: tab }).click();
    const text = await wizard.getByRole("tabpanel").textContent();
    check(text.includes(word) && text.includes("cap1."), `${tab}: ${text}`);
  }
  say("three commands");
});
