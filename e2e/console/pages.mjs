// Opens every page as an administrator and as a user, light and dark, wide and
// on a phone: no page may complain, break its policy, scroll sideways or fail
// axe. Pictures go to config.out when it is set.
import { accessible, check, config, fail, main, person, phone, say, settled, shot, signInByAPI, watched, wide } from "./rig.mjs";

const first = async (context, path, pick = () => true) => {
  const answer = await context.request.get(`${config.url}/api/v1${path}`);
  if (!answer.ok()) return undefined;
  const body = await answer.json();
  return (body.items ?? []).find(pick);
};

// Every page: name of the picture, who looks, where. A page that needs an ID
// gets it from the interface; without one it is left out, and that is said.
const pages = [
  { name: "signin", path: () => "/" },
  { name: "targets", as: "user", path: () => "/targets" },
  { name: "approvals", as: "admin", path: () => "/approvals", ready: '[role="row"]:has-text("Waiting")' },
  { name: "approvals-past", as: "admin", path: () => "/approvals?when=past" },
  { name: "approvals-none", as: "admin", path: () => "/approvals", by: nothingWaits },
  { name: "approve", as: "admin", path: () => "/approvals", by: ask(/^Approve DELETE/) },
  { name: "deny", as: "admin", path: () => "/approvals", by: ask(/^Deny POST/) },
  { name: "connections", as: "admin", path: () => "/connections" },
  { name: "connection", as: "admin", path: async (c) => with_("/connections/", (await first(c, "/connections?limit=50", (x) => x.recording_id && x.state === "disconnected"))?.id) },
  { name: "recordings", as: "admin", path: () => "/recordings" },
  { name: "recording", as: "admin", path: async (c) => with_("/recordings/", (await first(c, "/recordings?limit=50", (x) => x.status === "complete" && x.duration_s > 1))?.id), ready: ".ap-player, .ap-terminal" },
  { name: "terminal", as: "user", path: () => "/terminal" },
  { name: "network", as: "user", path: () => "/network" },
  { name: "account", as: "user", path: () => "/account" },
  { name: "overview", as: "admin", path: () => "/overview" },
  { name: "fleet", as: "admin", path: () => "/fleet" },
  { name: "edge", as: "admin", path: async (c) => with_("/fleet/", (await first(c, "/edges"))?.id) },
  { name: "users", as: "admin", path: () => "/admin/users" },
  { name: "user", as: "admin", path: async (c) => with_("/admin/users/", (await first(c, "/users", (u) => u.name === config.user.name))?.id) },
  { name: "roles", as: "admin", path: () => "/admin/roles" },
  { name: "role", as: "admin", path: async (c) => with_("/admin/roles/", (await first(c, "/roles", (r) => !r.builtin))?.id) },
  { name: "sites", as: "admin", path: () => "/admin/sites" },
  { name: "admin-targets", as: "admin", path: () => "/admin/targets" },
  { name: "target", as: "admin", path: async (c) => with_("/admin/targets/", (await first(c, "/targets", (t) => t.kind === "ssh"))?.id) },
  { name: "web-new", as: "admin", path: () => "/admin/web-target" },
  { name: "web-form", as: "admin", path: async (c) => with_("/admin/targets/", await web(c, "wiki", "/web")) },
  { name: "web-advanced", as: "admin", path: async (c) => with_("/admin/targets/", await web(c, "erp", "/web")) },
  { name: "web-target", as: "admin", path: async (c) => with_("/admin/targets/", await web(c, "wiki", "")) },
  { name: "web-try", as: "admin", path: async (c) => with_("/admin/targets/", await web(c, "wiki", "/try")) },
  { name: "web-refused", as: "user", path: () => "/web?target=wiki", ready: "[role=alert]" },
  { name: "groups", as: "admin", path: () => "/admin/groups" },
  { name: "group", as: "admin", path: () => "/admin/groups/default" },
  { name: "secrets", as: "admin", path: () => "/admin/secrets" },
  { name: "api-clients", as: "admin", path: () => "/admin/tokens" },
  { name: "certificates", as: "admin", path: () => "/admin/ssh-ca" },
  { name: "ways-in", as: "admin", path: () => "/admin/sign-in" },
  { name: "settings", as: "admin", path: () => "/admin/settings" },
  { name: "audit", as: "admin", path: () => "/admin/audit" },
  { name: "nothing", as: "user", path: () => "/no/such/page" },
];

// web is the path of a web target's page, below the targets.
async function web(c, name, page) {
  const id = (await first(c, `/targets?kind=web&search=${name}`, (t) => t.name === name))?.id;
  return id && id + page;
}

// ask opens the dialog of a request that waits.
function ask(name) {
  return async (page) => {
    await page.getByRole("button", { name }).locator("visible=true").first().click();
    await page.getByRole("dialog").first().waitFor();
  };
}

// nothingWaits has core answer so.
async function nothingWaits(page) {
  await page.route("**/api/v1/web-approvals?*", (route) => route.fulfill({ json: { items: [] } }));
  await page.reload();
  await settled(page);
  await page.getByText("Nothing waits").waitFor();
}

function with_(prefix, id) {
  return id && prefix + id;
}

// tab and press open what a page shows behind a tab or a button.
const tab = (name) => async (page) => {
  await page.getByRole("tab", { name, exact: true }).click();
};
const press = (name) => async (page) => {
  await page.getByRole("button", { name, exact: true }).first().click();
  await page.getByRole("dialog").first().waitFor();
};

// What stands behind a tab or in a dialog: axe looks at it as at a page.
const behind = [
  { name: "network-sessions", as: "admin", path: () => "/network", by: tab("Sessions") },
  { name: "network-targets", as: "admin", path: () => "/network", by: tab("Targets") },
  { name: "network-routers", as: "admin", path: () => "/network", by: tab("Routers") },
  { name: "fleet-tokens", as: "admin", path: () => "/fleet", by: tab("Enrolment tokens") },
  { name: "fleet-events", as: "admin", path: () => "/fleet", by: tab("Events") },
  { name: "terminal-live", as: "user", path: () => `/terminal/db-a?account=root`, ready: ".xterm-helper-textarea" },
  { name: "watch", as: "admin", path: async (c) => with_("/watch/", (await first(c, "/connections?live=true&limit=50", (x) => x.lockable && x.recording_id))?.id), ready: ".xterm-screen" },
  { name: "add-target", as: "admin", path: () => "/admin/targets", by: press("Add target") },
  { name: "import-targets", as: "admin", path: () => "/admin/targets", by: press("Import") },
  { name: "add-site", as: "admin", path: () => "/admin/sites", by: press("Add site") },
  { name: "add-role", as: "admin", path: () => "/admin/roles", by: press("Add role") },
  { name: "add-user", as: "admin", path: () => "/admin/users", by: press("Add user") },
  { name: "add-secret", as: "admin", path: () => "/admin/secrets", by: press("Store a secret") },
  { name: "add-group", as: "admin", path: () => "/admin/groups", by: press("Add group") },
  { name: "renew-authority", as: "admin", path: () => "/admin/groups/default", by: press("Renew…") },
  { name: "enrol", as: "admin", path: () => "/fleet", by: press("Enrol a node") },
  { name: "add-grant", as: "admin", path: async (c) => with_("/admin/targets/", (await first(c, "/targets", (t) => t.kind === "ssh"))?.id), by: press("Add grant") },
  { name: "delete-target", as: "admin", path: async (c) => with_("/admin/targets/", (await first(c, "/targets", (t) => t.kind === "ssh"))?.id), by: press("Delete") },
  { name: "verify-audit", as: "admin", path: () => "/admin/audit", by: press("Verify") },
];

const only = config.only ? new Set(config.only.split(",")) : undefined;

// Every page once in the light on a wide window and once in the dark on a
// phone, side by side; pictures are taken of all four.
const looks = config.out
  ? [["light", wide], ["dark", wide], ["light", phone], ["dark", phone]]
  : [["light", wide], ["dark", phone]];

async function look(browser, scheme, viewport) {
  const contexts = {};
  for (const as of ["admin", "user"]) {
    contexts[as] = await person(browser, { scheme, viewport });
    await signInByAPI(contexts[as], config[as]);
  }
  contexts.stranger = await person(browser, { scheme, viewport });
  // Tabs and dialogs are the same in every look: one does.
  for (const p of viewport === wide && scheme === "light" ? [...pages, ...behind] : pages) {
    if (only && !only.has(p.name)) continue;
    const context = contexts[p.as ?? "stranger"];
    const label = `${p.name} ${scheme} ${viewport.width}`;
    const path = await p.path(context);
    if (!path) {
      fail(`${label}: there is nothing to show`);
      continue;
    }
    const page = await watched(context, label);
    try {
      await page.goto(config.url + path);
      await settled(page);
      if (p.ready) await page.waitForSelector(p.ready, { state: "attached" });
      if (p.by) {
        await p.by(page);
        await settled(page);
      }
      if (config.out) await shot(page, `${p.name}-${scheme}-${viewport.width}`);
      await accessible(page, label);
      const sideways = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      check(sideways <= 0, `${label}: the page scrolls sideways by ${sideways} px`);
    } catch (e) {
      fail(`${label}: ${e.stack ?? e}`);
      if (config.out) await shot(page, `${p.name}-${scheme}-${viewport.width}`).catch(() => undefined);
    }
    await page.close();
  }
  for (const c of Object.values(contexts)) await c.close();
  say(`${scheme} ${viewport.width}: done`);
}

const began = Date.now();
await main(async (browser) => {
  await Promise.all(looks.slice(0, 2).map(([scheme, viewport]) => look(browser, scheme, viewport)));
  await Promise.all(looks.slice(2).map(([scheme, viewport]) => look(browser, scheme, viewport)));
  say(`${Math.round((Date.now() - began) / 1000)} s`);
});
