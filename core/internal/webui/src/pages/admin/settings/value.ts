import type { Schemas } from "~/api/client";

type Schema = Schemas["SettingsSchema"];

// Settings are edited as text; show and read translate, read(show(x)) is x.

export function show(s: Pick<Schema, "type">, v: unknown): string {
  if (v === null || v === undefined) return "";
  if (s.type === "networks" || s.type === "names") return Array.isArray(v) ? v.join("\n") : String(v);
  return String(v);
}

// read makes what core expects; what cannot be read goes to core as text, so
// that core says what is wrong with it.
export function read(s: Pick<Schema, "type">, text: string): unknown {
  const t = text.trim();
  switch (s.type) {
    case "integer":
      return /^-?\d+$/.test(t) ? Number(t) : t;
    case "boolean":
      return t === "true";
    case "networks":
    case "names":
      return t.split(/[\s,]+/).filter(Boolean);
    default:
      return t;
  }
}

export function changed(s: Pick<Schema, "type">, before: unknown, text: string): boolean {
  return JSON.stringify(read(s, text)) !== JSON.stringify(read(s, show(s, before)));
}

export function shownDefault(s: Pick<Schema, "type" | "default">): string {
  if (s.type === "boolean") return s.default ? "on" : "off";
  return show(s, s.default).replaceAll("\n", ", ") || "none";
}
