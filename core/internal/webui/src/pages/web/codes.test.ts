import { expect, test } from "vitest";
import { after, median, quality, wait } from "./codes";

test.each([
  [4000, "Terminated by eva: lunch", "over", "Terminated by eva: lunch"],
  [4000, "", "over", "The session has ended."],
  [4001, "", "refused", "You may not see this session."],
  [4002, "", "retry", "The machine that runs the browser cannot be reached."],
  [4003, "", "over", "There is no such session any more."],
  [1012, "", "retry", "This core is restarting."],
  [1006, "", "retry", ""],
])("a screen closed with %i %s", (code, reason, then, text) => {
  expect(after(code, reason)).toEqual({ then, text });
});

test("waits grow, stay bounded and scatter", () => {
  const middle = [0, 1, 2, 3, 4, 5, 50].map((n) => wait(n, 0.5));
  expect(middle).toEqual([...middle].sort((a, b) => a - b));
  expect(wait(50, 0.99)).toBeLessThan(3200);
  expect(wait(2, 0)).toBeLessThan(wait(2, 0.9));
});

test("quality goes by the median", () => {
  expect(quality(median([20, 900, 30]))?.bars).toBe(3);
  expect(quality(median([]))).toBeUndefined();
  expect(quality(300)?.bars).toBe(1);
});
