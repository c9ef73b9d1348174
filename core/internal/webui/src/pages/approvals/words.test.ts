import { expect, test } from "vitest";
import { bodyOf, methodOf, outcome, pathOf, stateOf } from "./words";

test("a URL loses its origin", () => {
  expect(pathOf("https://app.example:8443/admin/7?x=1")).toBe("/admin/7?x=1");
  expect(pathOf("https://app.example")).toBe("/");
});

test("an outcome names who and why", () => {
  expect(outcome({ state: "denied", decided_by: "anna", reason: "no ticket" })).toBe("by anna: no ticket");
  expect(outcome({ state: "expired", reason: "Nobody decided in time." })).toBe("Nobody decided in time.");
  expect(outcome({ state: "approved", decided_by: "anna" })).toBe("by anna");
  expect(outcome({ state: "lost", decided_by: "anna", reason: "The request was not sent." })).toBe("approved by anna: The request was not sent.");
  expect(stateOf({ state: "withdrawn" }).label).toBe("Taken back");
});

test("a body has a size and a type, or neither", () => {
  expect(bodyOf({ length_bytes: 0 })).toBe("Nothing is sent along.");
  expect(bodyOf({ length_bytes: -1 })).toBe("It has a body of unknown length.");
  expect(bodyOf({ length_bytes: 12, content_type: "text/plain" })).toBe("It has a body of 12 B (text/plain).");
});

test("both methods are told, where there are two", () => {
  expect(methodOf({ method: "POST" })).toBe("POST");
  expect(methodOf({ method: "POST", rule_method: "DELETE" })).toBe("POST as DELETE");
});
