// What scripts about web sessions share: acting inside a session, and looking
// at its picture.
import { config } from "./rig.mjs";

async function act(path, body = "") {
  const r = await fetch(config.control + path, { method: "POST", body });
  const said = await r.json();
  if (!r.ok) throw new Error(`${path} ${body.slice(0, 80)}: ${said}`);
  return said;
}

// run runs a script in the page that the session's browser shows.
export const run = (site, script) => act(`/run/${site.name}`, script);
// drive sends that page elsewhere.
export const drive = (site, to) => act(`/drive/${site.name}`, to);
// network cuts this browser off, or lets it back.
export const network = (how) => act("/network", how);

// until waits for a condition: true, or what is the case instead.
export async function until(what, ask, limit = 60_000) {
  let last;
  for (const end = Date.now() + limit; Date.now() < end; ) {
    try {
      last = await ask();
    } catch (e) {
      last = e;
    }
    if (last === true) return;
    await new Promise((go) => setTimeout(go, 60));
  }
  throw new Error(`${what}: not within ${limit / 1000} s: ${last?.message ?? last}`);
}

// ready waits until Firefox takes input on a page that is new: it drops what
// comes within its first frames (dom.input_events.security).
export const ready = (site) => run(site, "for (let i = 0; i < 5; i++) await new Promise(requestAnimationFrame); await new Promise((go) => setTimeout(go, 150)); return 1");

// share tells which part of the picture has the colour of the site's pages.
export const share = (page, site) =>
  page.evaluate(([r, g, b]) => {
    const c = document.querySelector('[role="application"] canvas:not([data-still])');
    if (!c || c.width === 0) return 0;
    // Read in one piece: a copy, so that the picture's own canvas stays fast.
    const copy = new OffscreenCanvas(c.width, c.height).getContext("2d");
    copy.drawImage(c, 0, 0);
    const p = copy.getImageData(0, 0, c.width, c.height).data;
    let same = 0;
    for (let i = 0; i < p.length; i += 4) same += Math.abs(p[i] - r) < 4 && Math.abs(p[i + 1] - g) < 4 && Math.abs(p[i + 2] - b) < 4;
    return same / (p.length / 4);
  }, site.color);

// pictured waits until the site's page is the picture.
export const pictured = (page, site, what) => until(what, async () => {
  const part = await share(page, site);
  return part > 0.2 || `${(100 * part).toFixed(1)} % of the picture has the page's colour`;
}, 90_000);

// spot is where in this browser's window an element of the session's page is.
export async function spot(page, site, selector) {
  const [x, y] = (await run(site, `const r = document.querySelector(${JSON.stringify(selector)}).getBoundingClientRect(); return Math.round(mozInnerScreenX + r.x + Math.min(40, r.width / 2)) + ' ' + Math.round(mozInnerScreenY + r.y + r.height / 2)`)).split(" ").map(Number);
  return page.evaluate(([x, y]) => {
    const c = document.querySelector('[role="application"] canvas:not([data-still])');
    const r = c.getBoundingClientRect();
    return [r.x + (x * r.width) / c.width, r.y + (y * r.height) / c.height];
  }, [x, y]);
}
