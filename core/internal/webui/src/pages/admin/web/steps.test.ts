import { expect, test } from "vitest";
import { blank, compile } from "./recipe";
import { type Moment, stepsOf, verdict } from "./steps";

const recipe = compile({ ...blank, preset: "form", page: "/login", request: "/login", submit: "#go" }, "https://wiki.example.org/").recipe;
const m = (t: number, kind: string, fields: Record<string, string>): Moment => ({ t, kind, fields });
const page = m(1, "navigation", { url: "https://wiki.example.org/login", status: "200" });
const put = (id: string, t = 2) => m(t, "injection", { id, url: "https://wiki.example.org/login", outcome: "used" });

test.each<[string, Moment[], number, string, string]>([
  ["nothing yet", [], 2, "busy", "first page"],
  ["nothing at all", [], 60, "bad", "No page"],
  ["not reached", [m(1, "request", { url: "https://wiki.example.org/", status: "502" })], 3, "bad", "not reached (502)"],
  ["answers 500", [m(1, "navigation", { url: "https://wiki.example.org/login", status: "502" })], 3, "bad", "answers 502 (the application was not reached)"],
  ["a field is missing", [page, m(6, "fill", { url: "https://wiki.example.org/login", outcome: "missing", fields: "password" })], 7, "bad", "The field password was not found on wiki.example.org/login"],
  ["a button is missing", [page, m(6, "fill", { url: "https://wiki.example.org/login", outcome: "no_button", fields: "#go" })], 7, "bad", "The button #go was not found"],
  ["waiting", [page], 3, "busy", "waiting for the sign-in"],
  ["never put in", [page], 30, "bad", "never put in"],
  ["another page", [m(1, "navigation", { url: "https://wiki.example.org/home", status: "200" })], 30, "bad", "login page /login was never shown"],
  ["core refused", [page, m(2, "injection", { id: "password", outcome: "refused" })], 5, "bad", "Core did not give"],
  ["held back", [page, m(2, "injection", { id: "password", outcome: "insecure" })], 5, "bad", "not encrypted"],
  ["wrong password by status", [page, put("username"), put("password"), m(3, "request", { url: "https://wiki.example.org/login", status: "401", injected: "password" })], 5, "bad", "refused the login"],
  ["wrong password by page", [page, put("username"), put("password"), m(3, "navigation", { url: "https://wiki.example.org/login", status: "403" })], 5, "bad", "answers 403"],
  ["half of it", [page, put("username")], 20, "warn", "password is missing"],
  ["half of it, yet", [page, put("username")], 4, "busy", "waiting for password"],
  ["good", [page, put("username"), put("password"), m(3, "navigation", { url: "https://wiki.example.org/home", status: "200" })], 5, "good", "took it"],
])("%s", (_, moments, seconds, tone, text) => {
  const v = verdict(moments, recipe, seconds);
  expect(v.text).toContain(text);
  expect(v.tone).toBe(tone);
});

test("nobody pressed the button", () => {
  const open = compile({ ...blank, preset: "form", page: "/login" }, "https://wiki.example.org/").recipe;
  expect(verdict([page, m(2, "fill", { outcome: "filled", url: "https://wiki.example.org/login" })], open, 20).text).toContain("nobody pressed");
});

test("a target without sign-in only needs its page", () => {
  expect(verdict([page], {}, 1).tone).toBe("good");
  expect(verdict([m(1, "navigation", { url: "https://x.example.org/", status: "404" })], {}, 1).tone).toBe("warn");
});

test("steps are the moments that matter, in words", () => {
  const steps = stepsOf([page, m(1, "request", { url: "https://wiki.example.org/a.css", status: "200" }), m(2, "blocked", { url: "https://cdn.example.net/x.js?secret=1", method: "GET", reason: "no_rule" }), put("password"), m(9, "clipboard", {})]);
  expect(steps.map((s) => `${s.what}: ${s.title}; ${s.detail}`)).toEqual([
    "page: Page wiki.example.org/login; Answer 200",
    "blocked: Refused: GET cdn.example.net/x.js; no rule allows it",
    "credential: The credential was put in; place “password”, wiki.example.org/login",
  ]);
});
