import { Tooltip } from "@mantine/core";
import { useSyncExternalStore } from "react";

const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const short = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

// One timer for all relative times of the page.
let now = Date.now();
const watchers = new Set<() => void>();
let timer: ReturnType<typeof setInterval> | undefined;
function watch(tell: () => void): () => void {
  watchers.add(tell);
  timer ??= setInterval(() => {
    now = Date.now();
    for (const w of watchers) w();
  }, 1000);
  return () => {
    watchers.delete(tell);
    if (watchers.size === 0) {
      clearInterval(timer);
      timer = undefined;
    }
  };
}

// useNow ticks every second, in step for the whole page.
export function useNow(): number {
  return useSyncExternalStore(watch, () => now);
}

const steps: [number, Intl.RelativeTimeFormatUnit][] = [[60, "second"], [3600, "minute"], [86_400, "hour"], [86_400 * 30, "day"], [86_400 * 365, "month"]];

// ago says how far a moment is from now: "3 minutes ago", "in 2 days".
export function ago(at: Date, from: number): string {
  const s = Math.round((at.getTime() - from) / 1000);
  if (Math.abs(s) < 10) return "now";
  let unit: Intl.RelativeTimeFormatUnit = "year";
  let size = 86_400 * 365;
  let last = 1;
  for (const [limit, u] of steps) {
    if (Math.abs(s) < limit) {
      unit = u;
      size = last;
      break;
    }
    last = limit;
  }
  return relative.format(Math.trunc(s / size), unit);
}

// duration writes seconds for people: 42 s, 3 min 5 s, 2 h 10 min, 4 d 3 h.
export function duration(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 ? ` ${s % 60} s` : ""}`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h${s % 3600 >= 60 ? ` ${Math.floor((s % 3600) / 60)} min` : ""}`;
  return `${Math.floor(s / 86_400)} d${s % 86_400 >= 3600 ? ` ${Math.floor((s % 86_400) / 3600)} h` : ""}`;
}

// Ago is a moment relative to now, with the exact time on hover and for readers.
export function Ago({ at }: { at: string | undefined }) {
  const n = useNow();
  if (!at) return <span>–</span>;
  const d = new Date(at);
  return (
    <Tooltip label={full.format(d)}>
      <time dateTime={at} className="nums">{ago(d, n)}</time>
    </Tooltip>
  );
}

// Time is an exact moment: only the hour when it is today.
export function Time({ at }: { at: string | undefined }) {
  if (!at) return <span>–</span>;
  const d = new Date(at);
  const today = new Date().toDateString() === d.toDateString();
  return (
    <Tooltip label={full.format(d)}>
      <time dateTime={at} className="nums">{today ? clock.format(d) : short.format(d)}</time>
    </Tooltip>
  );
}

// Lasting counts up while something goes on.
export function Lasting({ from, to, seconds }: { from?: string; to?: string; seconds?: number }) {
  return to || !from ? <span className="nums">{duration(seconds ?? 0)}</span> : <Counting from={from} />;
}

function Counting({ from }: { from: string }) {
  const n = useNow();
  return <span className="nums">{duration((n - new Date(from).getTime()) / 1000)}</span>;
}
