// What is said before a session ends by itself.
export interface Warning {
  why: "idle" | "time";
  left: number; // seconds
}

// warning tells which end is near at a time, both in milliseconds; the nearer one wins.
export function warning(now: number, s: { idle_s: number; notice_s: number; ends_at?: string }, lastInput: number): Warning | undefined {
  const notice = s.notice_s || 60;
  const list: Warning[] = [];
  if (s.ends_at) list.push({ why: "time", left: Math.ceil((Date.parse(s.ends_at) - now) / 1000) });
  if (s.idle_s > 0) list.push({ why: "idle", left: Math.ceil(s.idle_s - (now - lastInput) / 1000) });
  const near = list.filter((w) => w.left <= Math.min(notice, w.why === "idle" ? s.idle_s / 2 : notice)).sort((a, b) => a.left - b.left)[0];
  return near && { ...near, left: Math.max(0, near.left) };
}

// leftText is short for the bar: 2 h 10 min, 12 min, 0:42.
export function leftText(seconds: number): string {
  if (seconds >= 5400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  if (seconds >= 300) return `${Math.ceil(seconds / 60)} min`;
  return `${Math.floor(Math.max(0, seconds) / 60)}:${String(Math.floor(Math.max(0, seconds) % 60)).padStart(2, "0")}`;
}
