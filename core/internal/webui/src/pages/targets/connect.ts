import type { Schemas } from "~/api/client";

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
export type Way = "terminal" | "port" | "network" | "none";

export function wayOf(e: Entry): Way {
  switch (e.target.kind) {
    case "ssh":
      return e.features.includes("shell") ? "terminal" : "none";
    case "tcp":
      return "port";
    case "network":
      return "network";
    default:
      return "none";
  }
}

// connectable tells whether a link is enough: the terminal itself asks for a
// reason where one is needed.
export function connectable(e: Entry): boolean {
  return wayOf(e) === "terminal";
}

// connectPath is the page that opens the connection.
export function connectPath(e: Entry): string {
  if (wayOf(e) === "network") return `/network?target=${encodeURIComponent(e.target.name)}`;
  return `/terminal?target=${encodeURIComponent(e.target.name)}&account=${encodeURIComponent(e.account)}`;
}
