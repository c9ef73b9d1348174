import type { Schemas } from "~/api/client";
import type { Tone } from "~/ui/StateBadge";

export type Edge = Schemas["FleetEdgeOut"];

const words: Record<string, string> = { extender: "Extender", router: "Router", carrier: "Carrier", webproxy: "Web proxy", host: "Host" };

export const kindWord = (kind: string) => words[kind] ?? kind;
export const kindWords = (kind: string) => (kind === "webproxy" ? "Web proxies" : `${kindWord(kind)}s`);

const healths: Record<Edge["health"], { tone: Tone; label: string }> = {
  online: { tone: "good", label: "Online" },
  draining: { tone: "warn", label: "Draining" },
  cordoned: { tone: "warn", label: "Cordoned" },
  offline: { tone: "bad", label: "Offline" },
  revoked: { tone: "off", label: "Revoked" },
  never_connected: { tone: "off", label: "Never connected" },
};

// health is a node's state; a cordoned one that is empty can be stopped.
export function health(e: Edge): { tone: Tone; label: string } {
  if (e.health === "cordoned" && e.tunnel?.streams === 0) return { tone: "warn", label: "Cordoned, empty" };
  return healths[e.health];
}

// worst is the one thing to say about a node in a narrow place.
export function worst(e: Edge): string | undefined {
  return e.warnings?.[0] ?? (e.tunnel?.web?.problem || undefined) ?? ((e.health === "offline" || e.health === "never_connected") && e.last_error ? e.last_error : undefined);
}

// capacityText says how many web sessions a carrier or webproxy has and takes.
export function capacityText(e: Edge): string {
  const w = e.tunnel?.web;
  if (!w) return "";
  const ready = e.kind === "carrier" ? `, ${w.warm} ready` : "";
  return `${w.live} ${w.live === 1 ? "session" : "sessions"}${ready}, room for ${w.room}`;
}

export function rtt(ms: number): string {
  return ms <= 0 ? "–" : ms < 1 ? "<1 ms" : ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

// matches finds a node by words: each must be in its name, kind, site, version or a label.
export function matches(e: Edge, text: string): boolean {
  const hay = [e.name, e.kind, e.site ?? "", e.tunnel?.build ?? "", e.id, ...Object.entries(e.labels).flat()].join("\n").toLowerCase();
  return text.toLowerCase().split(/\s+/).every((w) => hay.includes(w));
}

const found: Record<string, string> = {
  direct: "its own address", url: "the configured address", configured: "the configured address", address: "its own address", path: "the path hint of the load balancer", hint: "the path hint of the load balancer",
  cookie: "the load balancer's sticky cookie", redial: "dialling until it was reached", lb: "the load balancer",
};

export const findingText = (f: string | undefined) => (f ? (found[f] ?? f) : "–");

export const bindingText = (b: string) =>
  b === "inner" ? "Something between ends TLS; TLS 1.3 with both certificates runs inside." : b === "bound" ? "TLS ends at core; the node's proof is bound to it." : b;

// skew says how far a clock is off: "1.4 s ahead".
export function skew(ms: number): string {
  const s = Math.abs(ms) / 1000;
  if (s < 0.05) return "in step";
  return `${s < 10 ? s.toFixed(1) : Math.round(s)} s ${ms > 0 ? "ahead" : "behind"}`;
}

// parseLabels reads "key=value" lines; what has no "=" is a key alone.
export function parseLabels(text: string): Record<string, string> {
  const out: Record<string, string> = {};
  for (const part of text.split(/[\n,]/)) {
    const p = part.trim();
    if (!p) continue;
    const i = p.indexOf("=");
    if (i < 0) out[p] = "";
    else out[p.slice(0, i).trim()] = p.slice(i + 1).trim();
  }
  return out;
}

export const labelText = (labels: Record<string, string>) => Object.entries(labels).sort().map(([k, v]) => (v ? `${k}=${v}` : k)).join("\n");

// lines splits what people type into lists: one per line, or with commas.
export const lines = (text: string) => text.split(/[\n,]/).map((s) => s.trim()).filter(Boolean);
