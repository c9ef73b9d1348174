import { expect, test } from "vitest";
import { type Authority, listState, some, words } from "./words";

const now = Date.parse("2026-03-01T12:00:00Z");
const authority = (more: Partial<Authority>): Authority => ({
  id: "x", name: "cards", enabled: true, bundle_pem: "", subjects: [], not_after: "2030-01-01T00:00:00Z", crl_entries: 0,
  created_at: "2026-01-01T00:00:00Z", version: 1, config: { field: "san_upn" }, ...more,
});

test("lists are split at blanks, commas and lines", () => {
  expect(words(" a.org, b.org\nc.org  ")).toEqual(["a.org", "b.org", "c.org"]);
  expect(words(" \n")).toEqual([]);
  expect(some([])).toBeUndefined();
  expect(some(["a"])).toEqual(["a"]);
});

test("the state of revocation lists says who gets in", () => {
  expect(listState(authority({}), now).tone).toBe("off");
  expect(listState(authority({ config: { field: "san_upn", require_crl: true } }), now)).toEqual({ tone: "bad", text: "None: nobody gets in" });
  const loaded = { crl_at: "2026-03-01T00:00:00Z", crl_entries: 1 };
  expect(listState(authority({ ...loaded, crl_until: "2026-03-05T00:00:00Z" }), now)).toMatchObject({ tone: "good", text: "1 revoked" });
  expect(listState(authority({ ...loaded, crl_until: "2026-03-02T11:00:00Z" }), now).tone).toBe("warn");
  expect(listState(authority({ ...loaded, crl_until: "2026-03-01T12:00:00Z" }), now).tone).toBe("bad");
});
