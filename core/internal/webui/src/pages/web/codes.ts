// Close codes of the screen's websocket (core/internal/webaccess).
export const closed = { ended: 4000, forbidden: 4001, carrierAway: 4002, unknown: 4003 } as const;

export type After = { then: "over" | "refused"; text: string } | { then: "retry"; text: string };

// after says what follows a websocket that was closed, in words for people.
export function after(code: number, reason: string): After {
  switch (code) {
    case closed.ended:
      return { then: "over", text: reason || "The session has ended." };
    case closed.forbidden:
      return { then: "refused", text: reason || "You may not see this session." };
    case closed.unknown:
      return { then: "over", text: reason || "There is no such session any more." };
    case closed.carrierAway:
      return { then: "retry", text: reason || "The machine that runs the browser cannot be reached." };
    case 1001:
    case 1012:
    case 1013:
      return { then: "retry", text: "This core is restarting." };
    default:
      return { then: "retry", text: "" };
  }
}

const waits = [250, 500, 1000, 1500, 2500];

// wait is how long to wait before the n-th attempt, in milliseconds; chance is
// in [0, 1), so that many viewers do not come back in step.
export const wait = (attempt: number, chance: number) => waits[Math.min(attempt, waits.length - 1)]! * (0.75 + chance / 2);

// quality puts a round trip into a word, and one for the eye.
export function quality(ms: number | undefined): { word: string; bars: 1 | 2 | 3 } | undefined {
  if (ms === undefined) return undefined;
  if (ms < 80) return { word: "Good connection", bars: 3 };
  if (ms < 250) return { word: "Slow connection", bars: 2 };
  return { word: "Very slow connection", bars: 1 };
}

// median of the last few samples says more than the last one.
export function median(samples: readonly number[]): number | undefined {
  if (samples.length === 0) return undefined;
  const sorted = [...samples].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}
