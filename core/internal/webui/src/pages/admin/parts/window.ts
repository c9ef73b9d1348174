import type { Schemas } from "~/api/client";

export type Window = Schemas["UserWindowView"];

// WindowForm is a time window as its inputs hold it: all text.
export interface WindowForm {
  notBefore: string; // datetime-local, in the browser's zone
  notAfter: string;
  days: string[];
  from: string;
  to: string;
  zone: string;
  floating: string;
}

export const dayNames = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"] as const;

const local = (iso: string | undefined): string => {
  if (!iso) return "";
  const d = new Date(iso);
  return new Date(d.getTime() - d.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
};

export function windowForm(w: Window | undefined): WindowForm {
  return { notBefore: local(w?.not_before), notAfter: local(w?.not_after), days: w?.days ?? [], from: w?.from ?? "", to: w?.to ?? "", zone: w?.zone ?? "", floating: w?.floating ?? "" };
}

// readWindow makes what core understands; nothing set is no window.
export function readWindow(f: WindowForm): Window | undefined {
  const w: Window = {};
  if (f.notBefore) w.not_before = new Date(f.notBefore).toISOString();
  if (f.notAfter) w.not_after = new Date(f.notAfter).toISOString();
  if (f.days.length > 0 && f.days.length < 7) w.days = dayNames.filter((d) => f.days.includes(d));
  if (f.from) w.from = f.from;
  if (f.to) w.to = f.to;
  if (f.zone.trim() && (w.days || w.from || w.to)) w.zone = f.zone.trim();
  if (f.floating.trim()) w.floating = f.floating.trim();
  return Object.keys(w).length > 0 ? w : undefined;
}

const long: Record<string, string> = { mon: "Mon", tue: "Tue", wed: "Wed", thu: "Thu", fri: "Fri", sat: "Sat", sun: "Sun" };

// days writes weekdays shortly: "Mon–Fri", "Sat, Sun".
export function daysText(days: readonly string[]): string {
  const sorted = dayNames.filter((d) => days.includes(d));
  const at = sorted.map((d) => dayNames.indexOf(d));
  const first = at[0];
  const last = at.at(-1);
  if (first !== undefined && last !== undefined && at.length > 2 && last - first === at.length - 1) return `${long[dayNames[first] as string]}–${long[dayNames[last] as string]}`;
  return sorted.map((d) => long[d]).join(", ");
}

// windowText says a window in words.
export function windowText(w: Window | undefined): string {
  if (!w) return "always";
  const parts: string[] = [];
  if (w.days?.length) parts.push(daysText(w.days));
  if (w.from || w.to) parts.push(`${w.from || "00:00"}–${w.to || "24:00"}`);
  if (w.zone && parts.length > 0) parts.push(`(${w.zone})`);
  const date = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  if (w.not_before) parts.push(`from ${date.format(new Date(w.not_before))}`);
  if (w.not_after) parts.push(`until ${date.format(new Date(w.not_after))}`);
  if (w.floating) parts.push(`for ${w.floating} from the first use`);
  return parts.join(" ") || "always";
}
