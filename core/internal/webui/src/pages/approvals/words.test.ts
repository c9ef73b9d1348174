import { expect, test } from "vitest";
import { outcome, pathOf, stateOf } from "./words";

test("a URL loses its origin", () => {
  expect(pathOf("https://app.example:8443/admin/7?x=1")).toBe("/admin/7?x=1");
  expect(pathOf("https://app.example")).toBe("/");
});

test("an outcome names who and why", () => {
  expect(outcome({ state: "denied", decided_by: "anna", reason: "no ticket" })).toBe("by anna: no ticket");
  expect(outcome({ state: "expired", reason: "Nobody decided in time." })).toBe("Nobody decided in time.");
  expect(outcome({ state: "approved", decided_by: "anna" })).toBe("by anna");
  expect(stateOf({ state: "withdrawn" }).label).toBe("Taken back");
});
