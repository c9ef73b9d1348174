import type { Schemas } from "~/api/client";
import { openPath } from "../web/path";

export type Entry = Schemas["PolicyEntryView"];

// A row of the list: one target with every account one may use on it.
export interface Row {
  target: Entry["target"];
  entries: Entry[];
}

// byTarget groups entries, which come ordered by target.
export function byTarget(entries: readonly Entry[]): Row[] {
  const rows: Row[] = [];
  for (const e of entries) {
    const last = rows.at(-1);
    if (last && last.target.id === e.target.id) last.entries.push(e);
    else rows.push({ target: e.target, entries: [e] });
  }
  return rows;
}

// How a target is opened from the console.
export type Way = "terminal" | "web" | "port" | "network" | "none";

export function wayOf(e: Entry): Way {
  switch (e.target.kind) {
    case "ssh":
      return e.features.includes("shell") ? "terminal" : "none";
    case "tcp":
      return "port";
    case "web":
      return e.features.includes("web") ? "web" : "none";
    case "network":
      return "network";
    default:
      return "none";
  }
}

// connectable tells whether a link is enough: the terminal and the viewer
// themselves ask for a reason where one is needed.
export function connectable(e: Entry): boolean {
  return wayOf(e) === "terminal" || wayOf(e) === "web";
}

// follow goes to a connection: web sessions have a tab of their own.
export function follow(e: Entry, go: (href: string) => void): void {
  if (wayOf(e) === "web") window.open(connectPath(e), "_blank", "noopener");
  else go(connectPath(e));
}

// connectPath is the page that opens the connection.
export function connectPath(e: Entry): string {
  if (wayOf(e) === "network") return `/network?target=${encodeURIComponent(e.target.name)}`;
  if (wayOf(e) === "web") return openPath(e.target.name, e.account);
  return `/terminal?target=${encodeURIComponent(e.target.name)}&account=${encodeURIComponent(e.account)}`;
}
