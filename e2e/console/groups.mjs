// Access groups: an administrator of everything makes a group, renews and
// revokes its SSH authority and makes an administrator of it, who then sees
// what is in it and nothing else.
import { accessible, check, config, main, person, say, settled, shot, signInByAPI, watched } from "./rig.mjs";

await main(async (browser) => {
  const context = await person(browser);
  await signInByAPI(context, config.admin);
  const page = await watched(context, "groups");
  const dialog = page.getByRole("dialog");
  const picture = async (who, name) => { if (config.out) await shot(who, name); };
  const choose = async (label, option) => {
    // The box around an input takes the click.
    await dialog.getByLabel(label, { exact: true }).first().click({ force: true });
    await page.getByRole("option", { name: option, exact: true }).click();
  };

  await page.goto(`${config.url}/admin/groups`);
  await settled(page);
  await page.getByRole("button", { name: "Add group" }).click();
  await dialog.getByLabel("Name").fill("plant");
  await dialog.getByLabel("Comment").fill("Line 3 and its controllers");
  await accessible(page, "add a group");
  await page.keyboard.press("Tab");
  await dialog.getByRole("button", { name: "Add", exact: true }).click();
  await page.getByRole("heading", { name: "plant", level: 1 }).waitFor();
  await settled(page);
  const id = new URL(page.url()).pathname.split("/").pop();

  const authority = page.locator("section").filter({ has: page.getByRole("heading", { name: "SSH authority" }) });
  const state = (generation) => authority.getByRole("row").filter({ hasText: `generation ${generation}` });
  await state(1).getByText("active", { exact: false }).waitFor();
  await authority.getByRole("button", { name: "Renew…" }).click();
  await dialog.getByText("nothing breaks").waitFor();
  await accessible(page, "renew the authority");
  await picture(page, "group-renew-light-1280");
  await dialog.getByRole("button", { name: "Make the next key" }).click();
  await state(2).getByRole("button", { name: "Make generation 2 active" }).waitFor();
  const lines = async () => ((await (await context.request.get(`${config.url}/api/v1/ssh-ca/public-keys/target?group=${id}`)).text()).trim().split("\n"));
  check((await lines()).length === 2, "not both keys are published while it is renewed");
  await picture(page, "group-light-1280");
  await state(2).getByRole("button", { name: "Make generation 2 active" }).click();
  await dialog.getByRole("button", { name: "Make active" }).click();
  await state(1).getByRole("button", { name: "Revoke generation 1" }).click();
  await dialog.getByText("cannot be taken back").waitFor();
  await dialog.getByRole("button", { name: "Revoke", exact: true }).click();
  await state(1).getByText("revoked", { exact: false }).waitFor();
  check((await lines()).length === 1, "a revoked key is published");
  say("renewed, activated, revoked");

  await page.getByRole("button", { name: "Add certificates" }).click();
  await dialog.getByLabel("Certificates").fill("rubbish");
  await dialog.getByRole("button", { name: "Add", exact: true }).click();
  await dialog.getByText("must be one or more certificates").waitFor();
  await dialog.getByLabel("Certificates").fill(config.anchor);
  await dialog.getByRole("button", { name: "Add", exact: true }).click();
  await page.getByText("CN=plant authority").waitFor();
  say("anchors");

  // The form of a site says its group; a target made in it follows.
  await page.goto(`${config.url}/admin/sites`);
  await settled(page);
  await page.getByRole("button", { name: "Add site" }).click();
  await dialog.getByLabel("Name").fill("line-3");
  await choose("Access group", "plant");
  await dialog.getByRole("button", { name: "Add", exact: true }).click();
  await page.getByText("line-3").first().waitFor();

  await page.goto(`${config.url}/admin/roles`);
  await settled(page);
  await page.getByRole("button", { name: "Add role" }).click();
  await dialog.getByLabel("Name").fill("plant-admins");
  for (const right of ["Manage users, roles and API clients", "Manage targets, sites and grants", "See all connections", "Manage access groups, their SSH authority and anchors", "Manage shared secrets", "Read the audit log"])
    await dialog.getByLabel(right).check();
  await choose("Access group", "plant");
  await choose("Limited to access groups", "plant");
  await page.keyboard.press("Escape");
  await dialog.getByRole("heading", { name: "Add a role" }).click();
  await accessible(page, "add a limited role");
  await picture(page, "role-limited-light-1280");
  await dialog.getByRole("button", { name: "Add", exact: true }).click();
  await page.getByText("Only in plant.").waitFor();
  const role = new URL(page.url()).pathname.split("/").pop();

  const keeper = { name: "plant.keeper", password: "correct horse battery staple" };
  const made = await context.request.post(`${config.url}/api/v1/users`, { data: { name: keeper.name, password: keeper.password } });
  check(made.ok(), `user: ${made.status()} ${await made.text()}`);
  const added = await context.request.put(`${config.url}/api/v1/roles/${role}/members/${(await made.json()).id}`, { data: {} });
  check(added.ok(), `member: ${added.status()} ${await added.text()}`);

  const his = await person(browser);
  await signInByAPI(his, keeper);
  const seen = await watched(his, "keeper");
  await seen.goto(`${config.url}/admin/targets`);
  await settled(seen);
  const nav = seen.getByRole("navigation").first();
  for (const name of ["Targets", "Sites", "Roles", "Secrets", "Access groups", "Audit log"]) await nav.getByRole("link", { name, exact: true }).waitFor();
  for (const name of ["Settings", "API clients", "Certificates", "Sign-in", "Fleet"]) check((await nav.getByRole("link", { name, exact: true }).count()) === 0, `he is offered ${name}`);
  await seen.getByText("No targets yet").waitFor();
  check((await seen.getByText("db-a").count()) === 0, "he sees targets of others");
  await seen.getByRole("button", { name: "Add target", exact: true }).click();
  const form = seen.getByRole("dialog");
  await form.getByLabel(/^Name/).fill("plc-7");
  await form.getByLabel(/^Site/).first().click();
  const options = await seen.getByRole("option").allTextContents();
  check(options.join() === "line-3", `he is offered the sites ${options}`);
  await seen.getByRole("option", { name: "line-3" }).click();
  await form.getByLabel(/^Host( \*)?$/).fill("192.168.7.20");
  await form.getByRole("button", { name: "Add", exact: true }).click();
  await seen.getByRole("heading", { name: "plc-7", level: 1 }).waitFor();
  say("he made a target");

  const others = (await (await context.request.get(`${config.url}/api/v1/targets?search=db-a`)).json()).items[0];
  await seen.goto(`${config.url}/admin/targets/${others.id}`);
  await seen.getByText("There is no such target").or(seen.getByText("There is no target")).first().waitFor();
  for (const path of ["/targets", "/sites", "/roles", "/secrets", "/connections", "/audit-events", "/grants"]) {
    const text = await (await his.request.get(`${config.url}/api/v1${path}`)).text();
    check(!text.includes("db-a") && !text.includes("vpc-a"), `${path} tells him of others: ${text.slice(0, 300)}`);
  }
  await seen.goto(`${config.url}/admin/groups`);
  await settled(seen);
  await seen.getByRole("row").filter({ hasText: "plant" }).waitFor();
  check((await seen.getByText("default", { exact: true }).count()) === 0, "he sees the default group");
  await picture(seen, "groups-keeper-light-1280");
  await accessible(seen, "groups of one administrator");
  say("and sees nothing of others");

  // The administrator of everything sees it where it belongs.
  await page.goto(`${config.url}/admin/targets?group=${id}`);
  await settled(page);
  await page.getByRole("row").filter({ hasText: "plc-7" }).waitFor();
  check((await page.getByText("db-a").count()) === 0, "the filter by group does not filter");
  await picture(page, "targets-group-light-1280");
});
