import type { Schemas } from "~/api/client";

// The JSON of shared/webrule, as core shows and takes it.
export type Spec = Schemas["TargetWebSpec"];
export type Policy = Schemas["WebrulePolicy"];
export type Recipe = Schemas["WebruleRecipe"];
export type Injection = Schemas["WebruleInjection"];
export type Fill = Schemas["WebruleFill"];
export type Login = Schemas["WebruleLogin"];
export type Step = Schemas["WebruleStep"];
export type Rule = Schemas["WebruleRule"];

export type Preset = "none" | "form" | "json" | "basic" | "digest" | "bearer" | "header" | "certificate" | "advanced";

export const presets: readonly { value: Preset; label: string; hint: string }[] = [
  { value: "none", label: "Users sign in themselves", hint: "Nothing is filled in." },
  { value: "form", label: "Form on a page", hint: "The page has a form that sends user name and password." },
  { value: "json", label: "Page that sends JSON", hint: "A single-page application that posts the login as JSON." },
  { value: "basic", label: "Basic", hint: "The browser itself would ask (RFC 7617)." },
  { value: "digest", label: "Digest", hint: "The browser itself would ask (RFC 7616)." },
  { value: "bearer", label: "Bearer token", hint: "Authorization: Bearer and the stored password." },
  { value: "header", label: "Header of its own", hint: "The stored password in a header you name." },
  { value: "certificate", label: "Client certificate", hint: "In the TLS handshake, with a stored certificate and key." },
  { value: "advanced", label: "Advanced", hint: "Several places, several pages, or a login that the proxy makes." },
];

// Simple is a sign-in as the form asks for it. URLs are absolute or paths of
// the start URL's origin.
export interface Simple {
  preset: Preset;
  page: string; // with the fields; empty: the start URL's
  second: string; // page that asks for the password only; empty: the same
  username: string; // field: its name or a CSS selector; empty: not filled
  password: string;
  totp: string;
  submit: string; // selector of the button to press; empty: the user does
  request: string; // where the page sends it; empty: any path of the page's origin
  secondRequest: string;
  // Names in what is sent; empty: those of the fields.
  usernameSent: string;
  passwordSent: string;
  totpSent: string;
  header: string;
  prefix: string;
}

export const blank: Simple = {
  preset: "none", page: "", second: "", username: "username", password: "password", totp: "", submit: "", request: "", secondRequest: "", usernameSent: "", passwordSent: "", totpSent: "", header: "", prefix: "",
};

// locate splits an absolute URL, or a path of base, into origin and path.
export function locate(text: string, base: string): { origin: string; path: string } | undefined {
  try {
    const u = new URL(text === "" ? base : text, base);
    if (u.protocol !== "https:" && u.protocol !== "http:") return undefined;
    return { origin: u.origin, path: u.pathname };
  } catch {
    return undefined;
  }
}

// The name under which a field is sent, from its selector: [name="x"] or a
// plain name say it, others do not.
export function nameOf(selector: string): string {
  const m = /^(?:[a-z]+)?\[name=(?:"([^"\]]+)"|'([^'\]]+)'|([^"'\]]+))\]$/i.exec(selector.trim());
  return m?.[1] ?? m?.[2] ?? m?.[3] ?? (/[#.[\]>:\s*]/.test(selector.trim()) ? "" : selector.trim());
}

const exact = (path: string) => (path === "" || path.endsWith("$") ? path : `${path}$`);

// compile makes the recipe of a simple sign-in; problems are what stands in
// its way, for people.
export function compile(s: Simple, start: string): { recipe: Recipe; problems: string[] } {
  const problems: string[] = [];
  const home = locate("", start);
  if (!home) return { recipe: {}, problems: s.preset === "none" ? [] : ["Enter the start URL first."] };
  const insecure = (origin: string) => (origin.startsWith("http:") ? { insecure: true } : {});
  const at = (text: string, what: string) => {
    const l = locate(text, start);
    if (!l) problems.push(`${what} is no address.`);
    return l ?? home;
  };
  switch (s.preset) {
    case "none":
    case "advanced":
      return { recipe: {}, problems };
    case "basic":
    case "digest":
    case "bearer":
      return { recipe: { injections: [{ id: "login", kind: s.preset, origin: home.origin, ...(s.preset === "bearer" ? { value: "password" } : {}), ...insecure(home.origin) }].map(rename) }, problems };
    case "header":
      if (!s.header) problems.push("Name the header.");
      return { recipe: { injections: [rename({ id: "login", kind: "header", origin: home.origin, field: s.header, value: "password", ...(s.prefix ? { prefix: s.prefix } : {}), ...insecure(home.origin) })] }, problems };
    case "certificate":
      return { recipe: { injections: [rename({ id: "login", kind: "client_cert", origin: home.origin })] }, problems };
    case "form":
    case "json": {
      const page = at(s.page, "The login page");
      const second = s.second ? at(s.second, "The password page") : undefined;
      const sent = locate(s.request, start);
      if (!sent) problems.push("The request is no address.");
      const to = s.request && sent ? { origin: sent.origin, path: exact(sent.path) } : { origin: page.origin, path: "" };
      const sent2 = s.secondRequest ? at(s.secondRequest, "The second request") : undefined;
      const to2 = second ? (sent2 ? { origin: sent2.origin, path: exact(sent2.path) } : { origin: second.origin, path: "" }) : to;
      const fields: { id: string; value: "username" | "password" | "totp"; selector: string; name: string; to: { origin: string; path: string } }[] = [];
      const add = (value: "username" | "password" | "totp", selector: string, name: string, goal: typeof to) => {
        if (!selector) return;
        const known = name || nameOf(selector);
        if (!known) problems.push(`Say under which name the ${words[value]} is sent: the selector does not tell.`);
        fields.push({ id: value, value, selector, name: known, to: goal });
      };
      add("username", s.username, s.usernameSent, to);
      add("password", s.password, s.passwordSent, to2);
      add("totp", s.totp, s.totpSent, to2);
      if (fields.length === 0) problems.push("Name at least one field.");
      const injections: Injection[] = fields.map((f) => ({ id: f.id, kind: s.preset, origin: f.to.origin, ...(f.to.path ? { path: f.to.path } : {}), field: f.name, value: f.value, ...insecure(f.to.origin) }));
      const fill = (where: { origin: string; path: string }, list: typeof fields): Fill => ({
        origin: where.origin, path: exact(where.path), fields: list.map((f) => ({ selector: f.selector, value: f.value, injection: f.id })), ...(s.submit ? { submit: s.submit } : {}),
      });
      const fills = second ? [fill(page, fields.filter((f) => f.value === "username")), fill(second, fields.filter((f) => f.value !== "username"))] : [fill(page, fields)];
      if (second && fills.some((f) => (f.fields ?? []).length === 0)) problems.push("Two pages need the user name on the first and the password on the second.");
      return { recipe: { injections, fills }, problems };
    }
  }
}

const words = { username: "user name", password: "password", totp: "one-time code" } as const;

// core keeps the ID "login" for logins of the proxy's own.
function rename(i: Injection): Injection {
  return { ...i, id: i.id === "login" ? "sign-in" : i.id };
}

// read finds the simple sign-in that compiles to a recipe; others are advanced.
export function read(recipe: Recipe | undefined, start: string): Simple {
  const r = recipe ?? {};
  const list = r.injections ?? [];
  const fills = r.fills ?? [];
  if (list.length === 0 && fills.length === 0 && !r.login) return { ...blank };
  const guess = guessed(list, fills, start);
  return guess && same(compile(guess, start).recipe, r) ? guess : { ...blank, preset: "advanced" };
}

function guessed(list: readonly Injection[], fills: readonly Fill[], start: string): Simple | undefined {
  const home = locate("", start);
  const [first] = list;
  if (!home || !first) return undefined;
  const near = (origin: string, path: string) => (origin === home.origin ? path : origin + path);
  if (first.kind === "form" || first.kind === "json") {
    const by = (v: string) => list.find((i) => i.value === v);
    const field = (v: string) => fills.flatMap((f) => f.fields ?? []).find((f) => f.value === v)?.selector ?? "";
    const sentAs = (v: string) => {
      const name = by(v)?.field ?? "";
      return name === nameOf(field(v)) ? "" : name;
    };
    const bare = (p: string | undefined) => (p ?? "").replace(/\$$/, "");
    const page = (f: Fill | undefined) => (f ? near(f.origin, bare(f.path)) : "");
    const request = (i: Injection | undefined) => (i?.path ? near(i.origin, bare(i.path)) : "");
    const start0 = near(home.origin, home.path);
    return {
      ...blank, preset: first.kind, page: page(fills[0]) === start0 ? "" : page(fills[0]), second: fills.length > 1 ? page(fills[1]) : "",
      username: field("username"), password: field("password"), totp: field("totp"), submit: fills[0]?.submit ?? "",
      request: request(by("username") ?? by("password")), secondRequest: fills.length > 1 ? request(by("password")) : "",
      usernameSent: sentAs("username"), passwordSent: sentAs("password"), totpSent: sentAs("totp"),
    };
  }
  if (list.length > 1) return undefined;
  if (first.kind === "basic" || first.kind === "digest" || first.kind === "bearer") return { ...blank, preset: first.kind };
  if (first.kind === "header") return { ...blank, preset: "header", header: first.field ?? "", prefix: first.prefix ?? "" };
  if (first.kind === "client_cert") return { ...blank, preset: "certificate" };
  return undefined;
}

// same compares what two recipes say, whatever the order of their keys and
// what of them is empty.
export function same(a: unknown, b: unknown): boolean {
  return JSON.stringify(plain(a)) === JSON.stringify(plain(b));
}

function plain(v: unknown): unknown {
  if (Array.isArray(v)) return v.length === 0 ? undefined : v.map(plain);
  if (typeof v !== "object" || v === null) return v === "" || v === 0 || v === false || v === null ? undefined : v;
  const out = Object.fromEntries(
    Object.entries(v)
      .map(([k, x]) => [k, plain(x)] as const)
      .filter(([, x]) => x !== undefined)
      .sort(([x], [y]) => (x < y ? -1 : 1)),
  );
  return Object.keys(out).length === 0 ? undefined : out;
}

// usesCredential tells whether a recipe needs an account.
export const usesCredential = (r: Recipe | undefined) => (r?.injections ?? []).length > 0 || r?.login !== undefined;
