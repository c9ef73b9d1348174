import { expect, test } from "vitest";
import { exportURL, query } from "./filter";

const none = { type: "", outcome: "", about: "", span: "all" } as const;

test("an empty filter asks for everything", () => {
  expect(Object.values(query(none, 0)).filter(Boolean)).toEqual([]);
  expect(exportURL(none, "csv", 0)).toBe("/api/v1/audit-events/export?format=csv");
});

test("an ID goes where core looks for it", () => {
  expect(query({ ...none, about: "usr_1" }, 0).about).toBe("usr_1");
  expect(query({ ...none, about: "con_1" }, 0).connection).toBe("con_1");
  expect(query({ ...none, about: "edg_1" }, 0)).toMatchObject({ object: "edg_1", about: undefined });
});

test("an export has the same filter as the list", () => {
  const url = exportURL({ type: "login.", outcome: "failed", about: "", span: "day" }, "jsonl", Date.UTC(2026, 0, 2));
  expect(url).toBe("/api/v1/audit-events/export?format=jsonl&type=login.&outcome=failed&since=2026-01-01T00%3A00%3A00.000Z");
});
