// The asciicast v2 format, as far as core writes it: a header line, then one
// event per line.

export type Event = [time: number, code: "o" | "i" | "r" | "m", data: string];

export interface Cast {
  cols: number;
  rows: number;
  events: Event[];
  duration: number; // seconds
}

export function parseCast(text: string): Cast {
  const lines = text.split("\n");
  const header = JSON.parse(lines[0] ?? "") as { version?: number; width?: number; height?: number };
  if (header.version !== 2) throw new Error("This is not an asciicast of version 2.");
  const events: Event[] = [];
  for (let i = 1; i < lines.length; i++) {
    const line = lines[i];
    if (!line) continue;
    try {
      const [time, code, data] = JSON.parse(line) as [number, string, string];
      if (code === "o" || code === "i" || code === "r" || code === "m") events.push([time, code, data]);
    } catch {
      break; // a recording that goes on may end in the middle of a line
    }
  }
  return { cols: header.width ?? 80, rows: header.height ?? 24, events, duration: events.at(-1)?.[0] ?? 0 };
}

// squeeze shortens every pause to limit seconds and tells the way between the
// time of the session and that of the player.
export function squeeze(cast: Cast, limit: number): { cast: Cast; toShown: (real: number) => number; toReal: (shown: number) => number } {
  const real: number[] = [0];
  const shown: number[] = [0];
  const events = cast.events.map(([time, code, data]): Event => {
    const before = real.at(-1) ?? 0;
    const at = (shown.at(-1) ?? 0) + Math.min(time - before, limit);
    real.push(time);
    shown.push(at);
    return [at, code, data];
  });
  return {
    cast: { ...cast, events, duration: shown.at(-1) ?? 0 },
    toShown: (t) => between(real, shown, t),
    toReal: (t) => between(shown, real, t),
  };
}

// between maps t from one rising scale to another, point by point.
function between(from: number[], to: number[], t: number): number {
  let low = 0;
  let high = from.length - 1;
  while (low < high) {
    const mid = (low + high + 1) >> 1;
    if ((from[mid] ?? 0) <= t) low = mid;
    else high = mid - 1;
  }
  const start = from[low] ?? 0;
  const end = from[low + 1];
  if (end === undefined || end === start) return to[low] ?? 0;
  return (to[low] ?? 0) + ((t - start) / (end - start)) * ((to[low + 1] ?? 0) - (to[low] ?? 0));
}
