import { expect, test } from "vitest";
import { asMiB, draftOf, fromMiB, type Target, specOf } from "./draft";
import { same } from "./recipe";

const web = {
  start_url: "https://wiki.example.org/", scan_url: "icap://scan:1344/avscan", insecure: false,
  policy: { allow: [{ host: "*.example.org", methods: ["GET"] }], deny: [{ host: "", path: "/admin" }], learn: true, own: true, private: ["10.0.0.0/8"], recipe: { injections: [{ id: "x", kind: "basic", origin: "https://wiki.example.org", times: 3 }] }, tls: { min: "1.0", legacy: true } },
  browser: { mode: "bar" as const, clipboard_in: 0, max_s: 600, extend: true, watermark: "{user}\n{date}" },
};

test("a target that is opened and saved stays as it was", () => {
  const d = draftOf({ name: "wiki", web, tags: [], comment: "", site: "" } as unknown as Target);
  const { web: saved, problems } = specOf(d);
  expect(problems).toEqual([]);
  expect(same(saved, web)).toBe(true);
});

test("a new target begins with a form and needs its start URL", () => {
  const d = draftOf();
  expect(specOf(d).problems).toHaveLength(1);
  expect(specOf({ ...d, start: "https://a.example.org/login" }).web.policy?.recipe?.injections).toHaveLength(2);
});

test("sizes survive the form", () => {
  for (const n of [0, 1 << 20, 16 << 20, 2 ** 36, 262144]) expect(fromMiB(asMiB(n, 0))).toBe(n);
  expect(asMiB(undefined, 16 << 20)).toBe(16);
  expect(fromMiB("")).toBe(0);
});
