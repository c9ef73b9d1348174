import { expect, test } from "vitest";
import { daysText, readWindow, windowForm, windowText } from "./window";

test("an untouched form is no window", () => {
  expect(readWindow(windowForm(undefined))).toBeUndefined();
  expect(readWindow({ ...windowForm(undefined), zone: "Europe/Berlin", days: ["mon", "tue", "wed", "thu", "fri", "sat", "sun"] })).toBeUndefined();
});

test("a window survives the form", () => {
  const w = { not_before: "2026-03-01T08:00:00.000Z", not_after: "2026-04-01T16:30:00.000Z", days: ["mon", "fri"], from: "08:30", to: "17:00", zone: "Europe/Berlin", floating: "8h" };
  expect(readWindow(windowForm(w))).toEqual(w);
});

test("windows in words", () => {
  expect(daysText(["fri", "mon", "tue", "wed", "thu"])).toBe("Mon–Fri");
  expect(daysText(["sun", "sat"])).toBe("Sat, Sun");
  expect(daysText(["mon", "wed", "fri"])).toBe("Mon, Wed, Fri");
  expect(windowText(undefined)).toBe("always");
  expect(windowText({ days: ["mon"], from: "22:00", zone: "UTC" })).toBe("Mon 22:00–24:00 (UTC)");
  expect(windowText({ floating: "8h" })).toBe("for 8h from the first use");
});
