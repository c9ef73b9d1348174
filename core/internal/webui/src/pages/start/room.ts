import type { Edge } from "~/pages/fleet/edge";

// room sums carriers and webproxies up: what is short decides how many more fit.
export function room(nodes: readonly Edge[]): { live: number; warm: number; room: number; problem?: string } {
  const on = (kind: string) => nodes.filter((e) => e.kind === kind && e.tunnel?.web && !e.cordoned);
  const sum = (list: readonly Edge[], f: "live" | "warm" | "room") => list.reduce((n, e) => n + (e.tunnel?.web?.[f] ?? 0), 0);
  const carriers = on("carrier");
  const proxies = on("webproxy");
  const left = Math.min(sum(carriers, "room"), sum(proxies, "room"));
  const out = { live: sum(nodes.filter((e) => e.kind === "carrier"), "live"), warm: sum(carriers, "warm"), room: left };
  if (carriers.length === 0) return { ...out, problem: "No carrier is connected: nothing can be opened." };
  if (proxies.length === 0) return { ...out, problem: "No webproxy is connected: nothing can be opened." };
  if (left === 0) return { ...out, problem: carriers.find((e) => e.tunnel?.web?.problem)?.tunnel?.web?.problem ?? "No more sessions fit." };
  return out;
}
