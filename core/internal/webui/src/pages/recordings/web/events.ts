import type { Schemas } from "~/api/client";

export type Moment = Schemas["RecordingMoment"];

// Words for the kinds of events; others show as they are called.
const kinds: Record<string, string> = {
  request: "Request", navigation: "Page", blocked: "Blocked", injection: "Credential", clipboard: "Clipboard", upload: "Upload", download: "Download",
  notice: "Notice", browser: "Browser", viewer: "Viewer", file: "File copy",
};

export const kindName = (kind: string) => kinds[kind] ?? kind.replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase());

const first = ["method", "status", "outcome", "direction", "url", "title", "path", "name", "text", "reason"];

// line is an event in one line: what counts first, then the rest.
export function line(m: Moment): string {
  const fields = m.fields ?? {};
  const lead = first.flatMap((k) => (fields[k] ? [fields[k]] : []));
  const rest = Object.keys(fields).filter((k) => !first.includes(k) && fields[k]).sort().map((k) => `${k}=${fields[k]}`);
  return [...lead, ...rest].join(" ");
}

// indexAt is the last event at or before t, -1 when there is none.
export function indexAt(events: readonly Moment[], t: number): number {
  let low = 0;
  let high = events.length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if ((events[mid] as Moment).t <= t + 1e-6) low = mid + 1;
    else high = mid;
  }
  return low - 1;
}

// addressAt is the page shown at t: the last navigation, else the last document
// that was asked for.
export function addressAt(events: readonly Moment[], t: number): string {
  for (let i = indexAt(events, t); i >= 0; i--) {
    const m = events[i] as Moment;
    if (m.kind === "navigation" && m.fields?.url) return m.fields.url;
    if (m.kind === "request" && m.fields?.url && m.fields.method === "GET" && /^text\/html|^document$/.test(m.fields.type ?? "")) return m.fields.url;
  }
  return "";
}

// choose filters by kind (none: all) and text.
export function choose(events: readonly Moment[], only: ReadonlySet<string>, text: string): Moment[] {
  const want = text.toLowerCase();
  return events.filter((m) => (only.size === 0 || only.has(m.kind)) && (!want || m.kind.includes(want) || Object.values(m.fields ?? {}).some((v) => v.toLowerCase().includes(want))));
}

// merge adds later pages; a live recording's events come as they arrive, so
// they are sorted here.
export function merge(have: readonly Moment[], more: readonly Moment[]): Moment[] {
  const all = [...have, ...more];
  for (let i = 1; i < all.length; i++) {
    if ((all[i] as Moment).t < (all[i - 1] as Moment).t) return all.sort((a, b) => a.t - b.t);
  }
  return all;
}
