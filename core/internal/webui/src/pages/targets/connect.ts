import type { Schemas } from "~/api/client";

export type Entry = Schemas["PolicyEntryView"];

// connectable tells whether one click is enough: nothing has to be asked first.
export function connectable(e: Entry): boolean {
  return e.target.kind === "ssh" && !e.need_reason;
}

// connectPath is the page that opens the connection.
export function connectPath(e: Entry): string {
  return `/terminal/${encodeURIComponent(e.target.name)}?account=${encodeURIComponent(e.account)}`;
}
