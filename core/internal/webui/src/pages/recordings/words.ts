import type { Schemas } from "~/api/client";

export type Recording = Schemas["RecordingRecording"];

// clock writes seconds as a player does: 0:07, 12:34, 1:02:03.
export function clock(seconds: number): string {
  const s = Math.max(0, Math.floor(seconds));
  const two = (n: number) => String(n).padStart(2, "0");
  return s >= 3600 ? `${Math.floor(s / 3600)}:${two(Math.floor((s % 3600) / 60))}:${two(s % 60)}` : `${Math.floor(s / 60)}:${two(s % 60)}`;
}

export const states: Record<Recording["status"], { label: string; tone: "good" | "warn" | "bad" | "busy" | "off"; text: string }> = {
  recording: { label: "Recording", tone: "busy", text: "The session is still going on." },
  complete: { label: "Complete", tone: "good", text: "It was recorded to its end, and nothing was changed since." },
  incomplete: { label: "Incomplete", tone: "warn", text: "The recording breaks off: what was written until then is here and was not changed." },
  damaged: { label: "Damaged", tone: "bad", text: "Parts were changed or are missing: do not rely on it." },
  expired: { label: "Expired", tone: "off", text: "Its retention is over; the content was removed." },
};

// at turns the nanoseconds of a search hit into seconds.
export const at = (ns: number) => ns / 1e9;

export const castUrl = (id: string) => `/api/v1/recordings/${encodeURIComponent(id)}/asciicast`;
