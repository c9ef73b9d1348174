import createClient, { type Middleware } from "openapi-fetch";
import type { components, paths } from "./schema";

export type Schemas = components["schemas"];

export interface FieldProblem {
  field: string;
  message: string;
}

// ApiError is core's problem document (RFC 9457), or what stands for it when
// core cannot be reached: status 0, code "offline".
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly title: string,
    readonly detail = "",
    readonly errors: FieldProblem[] = [],
    readonly requestId = "",
    readonly retryAfter = 0, // seconds
  ) {
    super(detail ? `${title} ${detail}` : title);
    this.name = "ApiError";
  }
}

export const offline = () => new ApiError(0, "offline", "Core cannot be reached.", "Check your network; the page goes on by itself when it is back.");

let lastInput = Date.now();
for (const kind of ["pointerdown", "keydown", "wheel", "touchstart"] as const) {
  window.addEventListener(kind, () => (lastInput = Date.now()), { capture: true, passive: true });
}

let ended: () => void = () => {};
// onSignedOut is told when core does not accept the session any more.
export function onSignedOut(tell: () => void): void {
  ended = tell;
}

// What the page loads by itself, because something changed, must not keep a
// session alive that nobody sits at.
const presence: Middleware = {
  onRequest({ request }) {
    if (request.method === "GET" && Date.now() - lastInput > 60_000) request.headers.set("Caponier-Background", "true");
    return request;
  },
  onResponse({ response, schemaPath }) {
    if (response.status === 401 && !schemaPath.startsWith("/login") && schemaPath !== "/me") ended();
  },
};

export const api = createClient<paths>({ baseUrl: "/api/v1", credentials: "same-origin" });
api.use(presence);

interface Answer<T> {
  data?: T;
  error?: unknown;
  response: Response;
}

// ask resolves to an answer's body and throws an ApiError for every refusal:
//   const me = await ask(api.GET("/me"));
export async function ask<T>(call: Promise<Answer<T>>): Promise<NonNullable<T>> {
  return (await askFull(call)).data;
}

// askFull also tells the version to send back in If-Match.
export async function askFull<T>(call: Promise<Answer<T>>): Promise<{ data: NonNullable<T>; etag: string }> {
  const { data, error, response } = await call.catch((cause: unknown) => {
    if (cause instanceof DOMException && cause.name === "AbortError") throw cause;
    throw offline();
  });
  if (!response.ok) throw problem(response, error);
  return { data: data as NonNullable<T>, etag: response.headers.get("ETag") ?? "" };
}

// problem reads a refusal in whatever shape it came.
export function problem(response: Response, body: unknown): ApiError {
  const p = (typeof body === "object" && body !== null ? body : {}) as Partial<Schemas["Problem"]>;
  const retry = Number(response.headers.get("Retry-After") ?? 0) || 0;
  const title = p.title ?? (response.status === 502 || response.status === 504 ? "Core does not answer." : `Core refused this (${response.status}).`);
  return new ApiError(response.status, p.code ?? "unknown", title, p.detail ?? "", p.errors ?? [], p.request_id ?? "", retry);
}

// asError makes an ApiError of whatever was thrown.
export function asError(e: unknown): ApiError {
  if (e instanceof ApiError) return e;
  return new ApiError(-1, "page", "Something went wrong in this page.", e instanceof Error ? e.message : String(e));
}
