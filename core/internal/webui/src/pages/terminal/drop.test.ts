import { expect, it } from "vitest";
import { above, join } from "./drop";

it("joins and climbs paths", () => {
  expect(join("/", "a")).toBe("/a");
  expect(join("/home/x", "a b")).toBe("/home/x/a b");
  expect(above("/home/x")).toBe("/home");
  expect(above("/home/x/")).toBe("/home");
  expect(above("/home")).toBe("/");
  expect(above("/")).toBe("/");
});
