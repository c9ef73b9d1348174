import { api, ApiError, ask, offline, problem } from "~/api/client";

// A web session as core describes it.
export interface WebSession {
  id: string; // of its connection
  state: string; // starting, running, ended
  target_id: string;
  target_name: string;
  user_name?: string;
  account?: string;
  own?: boolean;
  recorded: boolean;
  recording_id?: string;
  policy: WebPolicy;
  idle_s: number;
  notice_s: number;
  ends_at?: string;
  extend?: boolean;
  carrier?: string;
  webproxy?: string;
  warm?: boolean;
  locked?: boolean;
  lock_text?: string;
  watchers?: string[];
  problem?: string;
  end_reason?: string;
  end_text?: string;
}

// WebPolicy is what the person in front of the browser may do; 0 forbids.
export interface WebPolicy {
  clipboard_in: number; // bytes per paste into the browser
  clipboard_out: number;
  upload_max: number; // bytes per file
  download_max: number;
  watermark?: string[];
  mode?: string;
}

export interface Opening {
  target_id: string;
  account?: string;
  reason?: string;
  width: number;
  height: number;
  time_zone?: string;
}

export interface WebFile {
  path: string;
  dir?: boolean;
  size_bytes: number;
  modified: number; // unix seconds
}

async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  const response = await fetch(`/api/v1${path}`, {
    method, credentials: "same-origin", headers: body === undefined ? {} : { "Content-Type": "application/json" }, body: body === undefined ? undefined : JSON.stringify(body),
  }).catch(() => {
    throw offline();
  });
  const text = await response.text();
  let answer: unknown;
  try {
    answer = text ? JSON.parse(text) : undefined;
  } catch {
    answer = undefined;
  }
  if (!response.ok) throw problem(response, answer);
  return answer as T;
}

const at = (id: string) => `/web-sessions/${encodeURIComponent(id)}`;

export const openSession = (o: Opening) => call<WebSession>("POST", "/web-sessions", o);
export const readSession = (id: string) => call<WebSession>("GET", at(id));
export const endSession = (id: string) => call<void>("DELETE", at(id));
export const extendSession = (id: string) => call<WebSession>("POST", `${at(id)}/extend`, {});
export const listFiles = (id: string) => call<{ files: WebFile[] | null }>("GET", `${at(id)}/files`).then((a) => a.files ?? []);
export const removeFile = (id: string, path: string) => call<void>("DELETE", fileURL(id, path).replace("/api/v1", ""));

// fileURL is where a file, or a folder as a tar, is read and written.
export const fileURL = (id: string, path: string) => `/api/v1${at(id)}/files/${path.split("/").map(encodeURIComponent).join("/")}`;

// screenURL is the websocket that carries RFB (RFC 6143).
export function screenURL(id: string, watch: boolean): string {
  return `${location.protocol === "http:" ? "ws" : "wss"}://${location.host}/api/v1${at(id)}/screen${watch ? "?watch=1" : ""}`;
}

// exists tells whether the session goes on: null yes, else why not.
export async function exists(id: string): Promise<ApiError | null> {
  if (!navigator.onLine) return offline();
  try {
    const s = await readSession(id);
    return s.state === "ended" ? new ApiError(410, "ended", "The session has ended.", s.end_text ?? "") : null;
  } catch (e) {
    return e instanceof ApiError ? e : offline();
  }
}

// targetByName finds the entry of a target that may be used, by ID or name.
export async function targetByName(name: string, account: string) {
  const page = await ask(api.GET("/me/targets", { params: { query: { search: name.startsWith("tgt_") ? undefined : name, only: name.startsWith("tgt_") ? [name] : undefined, kind: "web", limit: 50 } } }));
  const fits = (page.items ?? []).filter((e) => e.target.name === name || e.target.id === name);
  return fits.find((e) => e.account === account) ?? (account ? undefined : fits[0]);
}
