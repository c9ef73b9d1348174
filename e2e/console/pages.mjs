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

function with_(prefix, id) {
  return id && prefix + id;
}

const only = config.only ? new Set(config.only.split(",")) : undefined;

await main(async (browser) => {
  for (const scheme of ["light", "dark"]) {
    for (const viewport of [wide, phone]) {
      const contexts = {};
      for (const as of ["admin", "user"]) {
        contexts[as] = await person(browser, { scheme, viewport });
        await signInByAPI(contexts[as], config[as]);
      }
      contexts.stranger = await person(browser, { scheme, viewport });
      for (const p of pages) {
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
          if (p.ready) await page.waitForSelector(p.ready);
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
  }
});
