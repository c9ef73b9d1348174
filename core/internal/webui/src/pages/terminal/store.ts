import { useSyncExternalStore } from "react";
import { api, ask } from "~/api/client";
import { Session, type Surroundings, type Wish } from "./session";

// The open terminals of this page. They outlive the page's components, so that
// looking at something else in the console closes nothing.
interface Tabs {
  sessions: readonly Session[];
  active: string; // key
  version: number;
}

let tabs: Tabs = { sessions: [], active: "", version: 0 };
const listeners = new Set<() => void>();
let restored: Promise<void> | undefined;

function set(change: Partial<Tabs>): void {
  tabs = { ...tabs, ...change, version: tabs.version + 1 };
  for (const l of listeners) l();
}

export const useTabs = () => useSyncExternalStore((l) => (listeners.add(l), () => listeners.delete(l)), () => tabs);

// around is set by the page while it is shown.
export const page: { say?: (t: string) => void; confirmPaste?: (t: string) => Promise<boolean>; find?: () => void; leave?: () => void } = {};

const around: Surroundings = {
  changed: () => set({}),
  say: (t) => page.say?.(t),
  confirmPaste: (t) => page.confirmPaste?.(t) ?? Promise.resolve(false),
  find: () => page.find?.(),
  leave: () => page.leave?.(),
  step: (by) => step(by),
};

export function open(wish: Wish): Session {
  const s = new Session(wish, around);
  set({ sessions: [...tabs.sessions, s], active: s.key });
  return s;
}

export function show(key: string): void {
  set({ active: key });
}

export function step(by: number): void {
  const n = tabs.sessions.length;
  if (n === 0) return;
  const i = tabs.sessions.findIndex((s) => s.key === tabs.active);
  set({ active: tabs.sessions[(i + by + n) % n]!.key });
}

export function close(key: string): void {
  const i = tabs.sessions.findIndex((s) => s.key === key);
  if (i < 0) return;
  tabs.sessions[i]!.close();
  const left = tabs.sessions.filter((s) => s.key !== key);
  const next = left[Math.min(i, left.length - 1)]?.key ?? "";
  set({ sessions: left, active: tabs.active === key ? next : tabs.active });
}

// restore takes up sessions that go on in core after the page was loaded anew,
// but not those another page shows.
export function restore(): Promise<void> {
  restored ??= takeUp();
  return restored;
}

async function takeUp(): Promise<void> {
  const { items } = await ask(api.GET("/terminal-sessions")).catch(() => ({ items: [] }));
  const known = new Set(tabs.sessions.map((s) => s.id));
  const back = (items ?? []).filter((t) => !t.attached && t.state !== "ended" && !known.has(t.id));
  if (back.length === 0) return;
  const sessions = back.map((t) => new Session({ target: t.target, account: t.account ?? "" }, around, t));
  set({ sessions: [...sessions, ...tabs.sessions], active: tabs.active || sessions[0]!.key });
}

// A page that is closed takes its sessions along only after core has waited
// for somebody to come back; say so while something runs.
window.addEventListener("beforeunload", (e) => {
  if (tabs.sessions.some((s) => s.status.phase === "running" || s.status.phase === "connecting" || s.status.phase === "lost")) e.preventDefault();
});
