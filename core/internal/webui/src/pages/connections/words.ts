import type { Schemas } from "~/api/client";
import { viewPath } from "../web/path";

export type Connection = Schemas["ConnRecord"];

export const live = (c: Connection) => !["disconnected", "failed"].includes(c.state);

export const kinds: Record<string, string> = { ssh: "SSH", sftp: "Files", exec: "Command", tcp: "TCP port", socks: "SOCKS", web: "Web", network: "Network" };

export const kindName = (kind: string) => kinds[kind] ?? kind;

// endings are what end_reason means, for people.
const endings: Record<string, string> = {
  user: "Ended by the user", target: "Ended by the target", terminated: "Terminated", access_lost: "The right to it ended", login_ended: "The sign-in ended",
  idle: "Idle for too long", max_duration: "Its time was over", route_lost: "The way to the target was lost", lease_over: "The database was away for too long",
  audit_full: "Its events could no longer be kept", shutdown: "Core was shut down", error: "Failed", core_lost: "The core carrying it stopped", connectivity_lost: "The user's network was lost",
};

export function ending(c: Connection): string {
  if (live(c)) return "";
  const reason = c.end_reason ?? "";
  return endings[reason] ?? (reason ? reason.charAt(0).toUpperCase() + reason.slice(1).replaceAll("_", " ") : "Ended");
}

// stateOf is one word and whether it is good: a lock outranks the rest.
export function stateOf(c: Connection): { state: string; label?: string; tone?: "good" | "warn" | "bad" | "busy" | "off" } {
  if (live(c) && c.locked_at) return { state: "locked", label: "Locked" };
  if (c.state === "connected") return { state: "connected", label: "Live" };
  if (c.state === "disconnected") return c.terminated_at ? { state: "terminated", label: "Terminated", tone: "warn" } : { state: "disconnected", label: "Ended" };
  return { state: c.state };
}

// watchPath is where a live connection is looked at.
export const watchPath = (c: Connection) => (c.kind === "web" ? viewPath(c.id, true) : `/watch/${c.id}`);

// route are the stations between the user and the target.
export function route(c: Connection, web?: { carrier: string; webproxy: string }): { name: string; what: string }[] {
  const stations = [
    { name: c.user_name, what: c.source },
    { name: "Core", what: { bastion: "SSH bastion", console: "console", api: "session port", socks: "SOCKS" }[c.via] ?? c.via },
  ];
  if (web?.carrier) stations.push({ name: web.carrier, what: "browser" });
  if (web?.webproxy) stations.push({ name: web.webproxy, what: "web proxy" });
  if (c.node_name) stations.push({ name: c.node_name, what: [c.site, c.transport].filter(Boolean).join(", ") });
  stations.push({ name: c.account ? `${c.account} on ${c.target_name}` : c.target_name, what: c.target_address });
  return stations;
}
