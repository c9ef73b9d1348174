import { locate, type Recipe } from "./recipe";

// Moment is an event of a session's timeline.
export interface Moment {
  t: number; // seconds since the start
  kind: string;
  source?: string;
  fields: Record<string, string>;
}

export type Tone = "good" | "warn" | "bad" | "off";

export interface TryStep {
  t: number;
  tone: Tone;
  what: "page" | "blocked" | "credential" | "field" | "request" | "other";
  title: string;
  detail: string;
}

const path = (url: string) => {
  const l = locate(url, url);
  return l ? `${l.origin.replace(/^https:\/\//, "")}${l.path}` : url;
};

const refusals: Record<string, string> = {
  no_rule: "no rule allows it", denied: "a rule denies it", other_host: "the connection was made for another host", credential_in_answer: "the answer held the credential", scan: "the scanner found something in it",
  internal: "the address is internal; list it under “Internal addresses that are meant”", ambiguous_path: "its path can be read in two ways", malformed: "it is malformed",
};

const outcomes: Record<string, { tone: Tone; text: string }> = {
  used: { tone: "good", text: "The credential was put in" },
  spent: { tone: "warn", text: "The credential was asked for once more than it may be used" },
  refused: { tone: "bad", text: "Core did not give the credential" },
  insecure: { tone: "bad", text: "The credential was held back: the connection is not encrypted, or the certificate is not checked" },
  failed: { tone: "bad", text: "The login that the webproxy makes failed" },
};

// stepsOf are the moments that say how a sign-in went, in words.
export function stepsOf(moments: readonly Moment[]): TryStep[] {
  const out: TryStep[] = [];
  for (const { t, kind, fields: f } of moments) {
    const url = f.url ?? "";
    const status = Number(f.status ?? 0);
    switch (kind) {
      case "navigation":
        out.push({ t, what: "page", tone: status >= 400 ? "bad" : "good", title: `Page ${path(url)}`, detail: status ? `Answer ${status}${statusWord(status)}` : "" });
        break;
      case "blocked":
        out.push({ t, what: "blocked", tone: "warn", title: `Refused: ${f.method ? `${f.method} ` : ""}${path(url)}`, detail: refusals[f.reason ?? ""] ?? (f.reason ?? "").replaceAll("_", " ") });
        break;
      case "injection": {
        const o = outcomes[f.outcome ?? ""] ?? { tone: "off" as const, text: `Credential: ${f.outcome ?? ""}` };
        out.push({ t, what: "credential", tone: o.tone, title: o.text, detail: [f.id && `place “${f.id}”`, url && path(url)].filter(Boolean).join(", ") });
        break;
      }
      case "fill":
        out.push(fillStep(t, f));
        break;
      case "request":
        // Browsers ask for an icon by themselves; many sites have none.
        if (f.injected || (status >= 400 && !path(url).endsWith("/favicon.ico"))) out.push({ t, what: "request", tone: status < 400 ? "good" : f.injected || status >= 500 ? "bad" : "warn", title: `${f.method ?? ""} ${path(url)}`, detail: `Answer ${status}${statusWord(status)}${f.injected ? ", with the credential" : ""}` });
        break;
      case "browser":
        out.push({ t, what: "other", tone: "off", title: `Browser: ${Object.values(f).filter(Boolean).join(", ")}`, detail: "" });
        break;
    }
  }
  return out;
}

function fillStep(t: number, f: Record<string, string>): TryStep {
  const page = path(f.url ?? "");
  const names = f.fields ?? "";
  switch (f.outcome) {
    case "missing":
      return { t, what: "field", tone: "bad", title: `The field ${names || "to fill in"} was not found`, detail: `on ${page}` };
    case "no_button":
      return { t, what: "field", tone: "bad", title: `The button ${names} was not found`, detail: `on ${page}` };
    case "pressed":
      return { t, what: "field", tone: "good", title: "The button was pressed", detail: `on ${page}` };
    default:
      return { t, what: "field", tone: "good", title: "The fields were filled in", detail: `on ${page}` };
  }
}

function statusWord(s: number): string {
  const words: Record<number, string> = { 401: " (not signed in)", 403: " (not allowed)", 404: " (not found)", 502: " (the application was not reached)", 503: " (not available)", 504: " (no answer in time)" };
  return words[s] ?? "";
}

export interface Verdict {
  tone: "good" | "warn" | "bad" | "busy";
  text: string;
  hint?: string;
}

// verdict says how the try went so far; seconds is how long it goes on.
export function verdict(moments: readonly Moment[], recipe: Recipe | undefined, seconds: number): Verdict {
  const of = (kind: string) => moments.filter((m) => m.kind === kind);
  const injections = of("injection");
  const used = injections.filter((m) => m.fields.outcome === "used");
  const bad = injections.find((m) => m.fields.outcome !== "used");
  const fills = of("fill");
  const missing = fills.filter((m) => m.fields.outcome === "missing" || m.fields.outcome === "no_button").at(-1);
  const pages = of("navigation");
  const last = pages.at(-1);
  const status = Number(last?.fields.status ?? 0);
  const wanted = (recipe?.injections ?? []).length > 0 || recipe?.login !== undefined;
  const need = new Set((recipe?.injections ?? []).filter((i) => !["basic", "digest", "client_cert"].includes(i.kind)).map((i) => i.id));
  const got = new Set(used.map((m) => m.fields.id ?? ""));
  if (pages.length === 0) {
    const failed = of("request").find((m) => Number(m.fields.status) >= 500);
    if (failed) return { tone: "bad", text: `The application was not reached (${failed.fields.status}).`, hint: "Check address, site and certificate; the picture shows what the webproxy says." };
    return seconds < 15 ? { tone: "busy", text: "Waiting for the first page…" } : { tone: "bad", text: "No page was asked for.", hint: "Look at the picture: the browser may show why." };
  }
  if (status >= 500) return { tone: "bad", text: `${path(last?.fields.url ?? "")} answers ${status}${statusWord(status)}.`, hint: "The picture shows what the webproxy or the application says." };
  if (!wanted) return status >= 400 ? { tone: "warn", text: `The page answers ${status}${statusWord(status)}.` } : { tone: "good", text: "The page is there.", hint: "This target signs nobody in." };
  if (missing && used.length === 0) {
    const s = fillStep(missing.t, missing.fields);
    return { tone: "bad", text: `${s.title} ${s.detail}.`, hint: "Compare the selector with the page in the picture." };
  }
  if (bad && used.length === 0) return { tone: "bad", text: `${outcomes[bad.fields.outcome ?? ""]?.text ?? "The credential was not put in"}.`, hint: bad.fields.outcome === "refused" ? "Check the account's secret, and that the place covers the address in the list." : undefined };
  if (used.length > 0) {
    const refused = of("request").find((m) => m.fields.injected && Number(m.fields.status) >= 400);
    if (refused) return { tone: "bad", text: `The application refused the login: ${path(refused.fields.url ?? "")} answered ${refused.fields.status}.`, hint: "Check user name and password of the account." };
    const at = used.at(-1)?.t ?? 0;
    const after = pages.filter((p) => p.t >= at).at(-1);
    if (after && Number(after.fields.status) >= 400) return { tone: "bad", text: `After the login ${path(after.fields.url ?? "")} answers ${after.fields.status}${statusWord(Number(after.fields.status))}.`, hint: "Check user name and password of the account." };
    const open = [...need].filter((id) => !got.has(id));
    if (open.length > 0) return seconds - at < 8 ? { tone: "busy", text: `The credential was put in once; waiting for ${open.join(", ")}…` } : { tone: "warn", text: `Put in, but not in every place: ${open.join(", ")} ${open.length === 1 ? "is" : "are"} missing.`, hint: "Is the name right under which it is sent? Did the page press the button?" };
    return { tone: "good", text: "The credential was put in and the application took it.", hint: "Look at the picture: are you signed in?" };
  }
  if (seconds < 8) return { tone: "busy", text: "The page is there; waiting for the sign-in…" };
  const paths = (recipe?.fills ?? []).map((f) => (f.path ?? "").replace(/\$$/, "")).filter(Boolean);
  const visited = pages.map((p) => locate(p.fields.url ?? "", "https://x")?.path ?? "");
  const never = paths.filter((p) => !visited.includes(p));
  if (fills.length > 0 && (recipe?.fills ?? []).every((f) => !f.submit)) return { tone: "warn", text: "The fields are filled in; nobody pressed the button.", hint: "Open the session and press it, or name the button in the sign-in." };
  if (paths.length > 0 && never.length === paths.length) return { tone: "bad", text: `The login page ${never.join(", ")} was never shown.`, hint: `The browser is at ${path(last?.fields.url ?? "")}. Is that the login page?` };
  return { tone: "bad", text: "The credential was never put in.", hint: "Do the field names fit, and does the page send the login to the address of the sign-in? The list shows what was asked for." };
}
