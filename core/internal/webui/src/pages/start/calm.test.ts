import { expect, test } from "vitest";
import { calm } from "./calm";

test("a burst is two calls: the first and one for the rest", () => {
  let clock = 0;
  let runs = 0;
  const due: (() => void)[] = [];
  const ask = calm(() => runs++, 1000, () => clock, (f) => due.push(f));
  ask();
  ask();
  ask();
  expect(runs).toBe(1);
  expect(due.length).toBe(1);
  clock = 1000;
  due.shift()?.();
  expect(runs).toBe(2);
  clock = 1500;
  ask();
  expect(due.length).toBe(1);
  clock = 5000;
  due.shift()?.();
  clock = 7000;
  ask();
  expect(runs).toBe(4);
});
