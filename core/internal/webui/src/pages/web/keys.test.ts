import { expect, test } from "vitest";
import { isPaste, tooMuch } from "./clipboard";
import { isLeave, specialsOf, symbolOf } from "./keys";

test.each([
  ["a", 0x61],
  ["ü", 0xfc],
  ["€", 0x010020ac],
  ["😀", 0x0101f600],
  ["\n", 0xff0d],
])("the key symbol of %j", (c, sym) => {
  expect(symbolOf(c)).toBe(sym);
});

test("special keys name what they press once", () => {
  const specials = specialsOf("firefox");
  expect(new Set(specials.map((s) => s.label)).size).toBe(specials.length);
  expect(new Set(specials.map((s) => JSON.stringify(s.keys))).size).toBe(specials.length);
});

test("no special key is offered that has no effect", () => {
  const hints = (engine?: string) => specialsOf(engine).map((s) => s.hint);
  expect(hints("firefox")).toContain("Ctrl N");
  expect(hints("chromium")).not.toContain("Ctrl N");
  expect(hints()).not.toContain("Ctrl N");
  for (const engine of ["firefox", "chromium", undefined]) {
    expect(hints(engine)).not.toContain("Ctrl Shift T"); // closed in both
    expect(hints(engine)).toContain("Ctrl T");
  }
});

const key = (key: string, held = "") => ({ key, code: "", ctrlKey: held.includes("c"), altKey: held.includes("a"), shiftKey: held.includes("s"), metaKey: held.includes("m") });

test("what pastes", () => {
  for (const e of [key("v", "c"), key("V", "cs"), key("v", "m"), key("Insert", "s")]) expect(isPaste(e)).toBe(true);
  for (const e of [key("v"), key("v", "ca"), key("c", "c"), key("Insert"), key("Insert", "cs")]) expect(isPaste(e)).toBe(false);
});

test("Ctrl+Alt+Home leaves the picture, nothing else does", () => {
  expect(isLeave(key("Home", "ca"))).toBe(true);
  for (const e of [key("Home"), key("Home", "c"), key("Home", "cs"), key("End", "ca")]) expect(isLeave(e)).toBe(false);
});

test("a cap counts bytes, not letters", () => {
  expect(tooMuch("ü".repeat(10), 20)).toBeUndefined();
  expect(tooMuch("ü".repeat(11), 20)).toContain("22 B");
});
