import type { ReactNode } from "react";
import type { WebSession } from "./api";

// Watchers says who looks at the session besides its user.
export function Watchers({ s, children }: { s: WebSession; children: (text: string, tip: string) => ReactNode }) {
  const names = s.watchers;
  if (names.length === 0) return null;
  return children(names.length === 1 ? `${names[0]} is watching` : `${names.length} are watching`, `Watched by ${names.join(", ")}`);
}
