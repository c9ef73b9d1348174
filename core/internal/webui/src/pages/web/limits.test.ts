import { expect, test } from "vitest";
import { leftText, warning } from "./limits";

const now = 1_000_000_000_000;
const at = (s: number) => new Date(now + s * 1000).toISOString();

test.each([
  ["nothing is near", { idle_s: 600, notice_s: 60, ends_at: at(3600) }, 10, undefined],
  ["idle is near", { idle_s: 600, notice_s: 60 }, 550, { why: "idle", left: 50 }],
  ["time is near", { idle_s: 0, notice_s: 60, ends_at: at(59) }, 5, { why: "time", left: 59 }],
  ["the nearer one wins", { idle_s: 600, notice_s: 60, ends_at: at(20) }, 590, { why: "idle", left: 10 }],
  ["never below zero", { idle_s: 0, notice_s: 60, ends_at: at(-5) }, 0, { why: "time", left: 0 }],
  ["a short idle limit is not announced all the time", { idle_s: 40, notice_s: 60 }, 10, undefined],
  ["no limits", { idle_s: 0, notice_s: 60 }, 99_999, undefined],
])("%s", (_, s, idleFor, want) => {
  expect(warning(now, s, now - idleFor * 1000)).toEqual(want);
});

test.each([[7800, "2 h 10 min"], [720, "12 min"], [299, "4:59"], [42, "0:42"], [-3, "0:00"]])("%i s left is %s", (s, text) => {
  expect(leftText(s)).toBe(text);
});
