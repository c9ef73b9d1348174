import { expect, test } from "vitest";
import { changed, read, show, shownDefault } from "./value";

test("values survive being edited as text", () => {
  for (const [type, v] of [["integer", 5], ["duration", "15m0s"], ["boolean", true], ["boolean", false], ["string", "%"], ["networks", ["10.0.0.0/8", "::1/128"]], ["networks", []], ["names", ["example.net", "10.0.0.0/8"]]] as const) {
    expect(read({ type }, show({ type }, v))).toEqual(v);
    expect(changed({ type }, v, show({ type }, v))).toBe(false);
  }
});

test("what is no number goes to core, which says so", () => {
  expect(read({ type: "integer" }, "five")).toBe("five");
  expect(read({ type: "integer" }, " 12 ")).toBe(12);
});

test("white space is no change", () => {
  expect(changed({ type: "networks" }, ["10.0.0.0/8"], "10.0.0.0/8\n")).toBe(false);
  expect(changed({ type: "integer" }, 5, "6")).toBe(true);
});

test("defaults in words", () => {
  expect(shownDefault({ type: "boolean", default: false })).toBe("off");
  expect(shownDefault({ type: "networks", default: [] })).toBe("none");
});
