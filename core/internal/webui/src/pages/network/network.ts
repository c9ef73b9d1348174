import type { Schemas } from "~/api/client";

export type Entry = Schemas["PolicyEntryView"];
export type Session = Schemas["NetaccessSession"];
export type Router = Schemas["NetaccessRouter"];
export type Target = Schemas["TargetView"];
export type NetworkText = Schemas["TargetNetworkText"];
export type Destination = Schemas["TargetDestinationText"];
export type Simulated = Schemas["NetaccessSimulated"];

// line writes a destination in one line: "10.20.0.0/24 tcp 502 → 10.9.0.1:1502".
export function line(d: Destination): string {
  const parts = [d.addrs];
  if (d.proto && d.proto !== "any") parts.push(d.proto);
  if (d.ports) parts.push(d.ports);
  if (d.dnat_addr) {
    const host = d.dnat_addr.includes(":") && d.dnat_port ? `[${d.dnat_addr}]` : d.dnat_addr;
    parts.push("→", d.dnat_port ? `${host}:${d.dnat_port}` : host);
  }
  return parts.join(" ");
}

// parse reads what line writes; a string is what is wrong with it. Core checks
// addresses and ports again, and better.
export function parse(text: string): Destination | string {
  const [from, to, more] = text.trim().split(/\s*(?:->|→)\s*/);
  if (more !== undefined) return "has two arrows";
  const words = (from ?? "").split(/\s+/).filter(Boolean);
  const [addrs, proto, ports, rest] = words;
  if (!addrs) return "names no address";
  if (rest) return "is too long: write address, protocol, ports";
  if (proto && !["any", "tcp", "udp"].includes(proto)) return `${proto} is not tcp, udp or any`;
  const d: Destination = { addrs, proto: (proto ?? "any") as Destination["proto"] };
  if (ports && ports !== "any") d.ports = ports;
  if (to === undefined) return d;
  const v6 = /^\[(.+)\](?::(\d+))?$/.exec(to);
  const v4 = /^([^:]+)(?::(\d+))?$/.exec(to);
  const m = v6 ?? v4;
  if (!to) return "names no address after the arrow";
  d.dnat_addr = m?.[1] ?? to;
  if (m?.[2]) d.dnat_port = Number(m[2]);
  return d;
}

// parseAll reads one destination per line.
export function parseAll(text: string): { destinations: Destination[]; problems: string[] } {
  const destinations: Destination[] = [];
  const problems: string[] = [];
  text.split("\n").forEach((l, i) => {
    if (l.trim() === "") return;
    const d = parse(l);
    if (typeof d === "string") problems.push(`Line ${i + 1} ${d}.`);
    else destinations.push(d);
  });
  return { destinations, problems };
}

// reasons are ends of sessions as people say them.
const reasons: Record<string, string> = {
  user: "closed by the user", terminated: "ended by an administrator", access_lost: "access was lost", login_ended: "the login ended",
  connectivity_lost: "the user was not heard of", route_lost: "the router was lost", lease_over: "access could not be confirmed",
  max_duration: "its time was over", idle: "nothing moved", error: "it failed", core_lost: "core stopped",
};

export function ending(s: Session): string {
  return s.end_reason ? (reasons[s.end_reason] ?? s.end_reason) : "";
}

// forms writes a count with its noun.
export function some(n: number, one: string, many = `${one}s`): string {
  return `${n} ${n === 1 ? one : many}`;
}
