import { expect, test } from "vitest";
import { blank, compile, locate, nameOf, read, same, type Simple } from "./recipe";

const start = "https://wiki.example.org:8443/start?x=1";
const form = (change: Partial<Simple> = {}): Simple => ({ ...blank, preset: "form", ...change });

test("a form on the start page", () => {
  expect(compile(form({ page: "/login", request: "/login/check", submit: "button[type=submit]" }), start)).toEqual({
    problems: [],
    recipe: {
      injections: [
        { id: "username", kind: "form", origin: "https://wiki.example.org:8443", path: "/login/check$", field: "username", value: "username" },
        { id: "password", kind: "form", origin: "https://wiki.example.org:8443", path: "/login/check$", field: "password", value: "password" },
      ],
      fills: [
        {
          origin: "https://wiki.example.org:8443", path: "/login$", submit: "button[type=submit]",
          fields: [{ selector: "username", value: "username", injection: "username" }, { selector: "password", value: "password", injection: "password" }],
        },
      ],
    },
  });
});

test("JSON properties differ from the fields; another origin takes them", () => {
  const { recipe, problems } = compile({ ...blank, preset: "json", username: "#user", usernameSent: "user.name", password: "input[name=pw]", passwordSent: "user.password", request: "https://api.example.org/v1/session" }, start);
  expect(problems).toEqual([]);
  expect(recipe.injections?.map((i) => [i.origin, i.path, i.field])).toEqual([
    ["https://api.example.org", "/v1/session$", "user.name"],
    ["https://api.example.org", "/v1/session$", "user.password"],
  ]);
  expect(recipe.fills?.[0]?.path).toBe("/start$");
});

test("two pages: the user name on the first, the password and code on the second", () => {
  const { recipe, problems } = compile(form({ page: "/login", second: "/login/password", totp: "otp", request: "/login", secondRequest: "/login/password" }), start);
  expect(problems).toEqual([]);
  expect(recipe.fills?.map((f) => [f.path, f.fields?.map((x) => x.injection).join()])).toEqual([["/login$", "username"], ["/login/password$", "password,totp"]]);
  expect(recipe.injections?.map((i) => i.path)).toEqual(["/login$", "/login/password$", "/login/password$"]);
});

test("plain http says so in every place", () => {
  for (const preset of ["form", "json", "basic", "digest", "bearer"] as const)
    for (const i of compile({ ...blank, preset }, "http://10.0.0.5/").recipe.injections ?? []) expect(i.insecure).toBe(true);
});

test.each<[Partial<Simple>, string]>([
  [{ preset: "header" }, "Name the header."],
  [{ preset: "form", username: "#u", password: "" }, "user name is sent"],
  [{ preset: "form", username: "", password: "", totp: "" }, "at least one field"],
  [{ preset: "form", second: "/pw", username: "" }, "Two pages"],
  [{ preset: "form", request: "ftp://x/" }, "request is no address"],
])("what is missing is said: %j", (change, text) => {
  expect(compile({ ...blank, ...change }, start).problems.join(" ")).toContain(text);
});

test("without a start URL nothing compiles but nothing", () => {
  expect(compile({ ...blank, preset: "form" }, "").problems).toHaveLength(1);
  expect(compile(blank, "")).toEqual({ recipe: {}, problems: [] });
});

// Every simple sign-in can be edited again.
const pick = <T>(list: readonly T[], n: number) => list[n % list.length] as T;
test("what was compiled is read back as it was", () => {
  const simples: Simple[] = [];
  for (let n = 0; n < 216; n++) {
    const preset = pick(["form", "json"] as const, n);
    const second = pick(["", "/second", "https://sso.example.org/pw"], Math.floor(n / 2));
    simples.push({
      ...blank, preset, second, page: pick(["", "/login", "https://sso.example.org/in"], Math.floor(n / 6)),
      username: pick(["username", "#u", '[name="us er"]'], Math.floor(n / 18)), password: pick(["password", "input[name=pw]"], Math.floor(n / 3)),
      usernameSent: pick(["", "a.b"], Math.floor(n / 54)) || (Math.floor(n / 18) % 3 === 1 ? "u" : ""), totp: pick(["", "otp"], Math.floor(n / 108)), submit: pick(["", "#go"], Math.floor(n / 5)),
      request: pick(["", "/do", "https://api.example.org/s"], Math.floor(n / 7)), secondRequest: second ? pick(["", "/do2"], Math.floor(n / 11)) : "",
    });
  }
  for (const preset of ["none", "basic", "digest", "bearer", "certificate"] as const) simples.push({ ...blank, preset });
  simples.push({ ...blank, preset: "header", header: "X-Token", prefix: "Token " });
  for (const s of simples) {
    const { recipe, problems } = compile(s, start);
    expect(problems).toEqual([]);
    const back = read(recipe, start);
    expect(back.preset, JSON.stringify(s)).toBe(s.preset);
    expect(same(compile(back, start).recipe, recipe), JSON.stringify(s)).toBe(true);
  }
});

test("what is not simple is advanced, and nothing of it is lost", () => {
  const base = compile(form(), start).recipe;
  const odd = [
    { ...base, injections: [...(base.injections ?? []), { id: "x", kind: "basic", origin: "https://other.example.org" }] },
    { ...base, injections: base.injections?.map((i) => ({ ...i, times: 5 })) },
    { ...base, login: { steps: [{ method: "POST", url: "/x" }] } },
    { injections: [{ id: "b", kind: "multipart", origin: "https://wiki.example.org:8443", field: "f", value: "password" }] },
    { injections: [{ id: "sign-in", kind: "basic", origin: "https://elsewhere.example.org" }] },
  ];
  for (const r of odd) expect(read(r, start).preset).toBe("advanced");
});

test("empty and missing say the same", () => {
  expect(same({ injections: [], fills: null, x: { y: "" } }, {})).toBe(true);
  expect(same({ a: 1, b: 2 }, { b: 2, a: 1 })).toBe(true);
  expect(same({ a: 1 }, { a: 2 })).toBe(false);
});

test.each([["pw", "pw"], ['[name="user name"]', "user name"], ["input[name=pw]", "pw"], ["#pw", ""], ["form .x", ""]])("%s is sent as %j", (selector, name) => {
  expect(nameOf(selector)).toBe(name);
});

test("locate", () => {
  expect(locate("/a?b=c#d", start)).toEqual({ origin: "https://wiki.example.org:8443", path: "/a" });
  expect(locate("javascript:x", start)).toBeUndefined();
  expect(locate("", "nonsense")).toBeUndefined();
});
