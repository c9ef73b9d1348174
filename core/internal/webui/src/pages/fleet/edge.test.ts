import { expect, test } from "vitest";
import { type Edge, health, labelText, lines, matches, parseLabels, rtt, skew, worst } from "./edge";

const edge = (over: Partial<Edge>): Edge => ({
  id: "edg_1", kind: "extender", name: "ext-1", site: "vpc-a", labels: { rack: "b2" }, rules: {}, cordoned: false, health: "online", created_at: "", certificate_not_after: "",
  certificate_serial: "", enrolment_token_id: "", version: 1, ...over,
});

test("every word must be found somewhere", () => {
  expect(matches(edge({}), "EXT vpc")).toBe(true);
  expect(matches(edge({}), "rack b2")).toBe(true);
  expect(matches(edge({}), "ext vpc-b")).toBe(false);
});

test("labels read back as written", () => {
  expect(parseLabels("rack=b2, spare\nurl=a=b")).toEqual({ rack: "b2", spare: "", url: "a=b" });
  expect(parseLabels(labelText({ b: "2", a: "" }))).toEqual({ a: "", b: "2" });
  expect(lines(" 10.0.0.0/8,\n\n22 ")).toEqual(["10.0.0.0/8", "22"]);
});

test("figures for people", () => {
  expect([rtt(0), rtt(0.4), rtt(3.21), rtt(84.6)]).toEqual(["–", "<1 ms", "3.2 ms", "85 ms"]);
  expect([skew(10), skew(1400), skew(-45_000)]).toEqual(["in step", "1.4 s ahead", "45 s behind"]);
});

test("a cordoned node without streams can be stopped", () => {
  const tunnel = { streams: 0 } as Edge["tunnel"];
  expect(health(edge({ health: "cordoned", tunnel })).label).toBe("Cordoned, empty");
  expect(health(edge({ health: "cordoned" })).label).toBe("Cordoned");
  expect(worst(edge({ health: "offline", last_error: "connection refused" }))).toBe("connection refused");
  expect(worst(edge({ last_error: "an old one" }))).toBeUndefined();
});
