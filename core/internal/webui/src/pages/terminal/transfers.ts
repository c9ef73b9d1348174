import { useSyncExternalStore } from "react";
import { api, ApiError, ask, asError, offline, problem } from "~/api/client";

// Upload is one file on its way to the target.
export interface Upload {
  key: number;
  session: string;
  file: File;
  path: string; // on the target
  state: "waiting" | "running" | "done" | "failed" | "exists" | "cancelled";
  sent: number; // bytes that are there
  error?: ApiError;
  replace: boolean;
  tries: number;
}

const atOnce = 3;
const maxTries = 6;

let uploads: readonly Upload[] = [];
let count = 0;
const listeners = new Set<() => void>();
const running = new Map<number, XMLHttpRequest>();
let told = 0;

function changed(next: readonly Upload[]): void {
  uploads = next;
  // Many small files finish within one frame: one look at the list is enough.
  if (told) return;
  told = requestAnimationFrame(() => {
    told = 0;
    for (const l of listeners) l();
  });
}

const update = (key: number, change: Partial<Upload>) => changed(uploads.map((u) => (u.key === key ? { ...u, ...change } : u)));
const find = (key: number) => uploads.find((u) => u.key === key);

export const useUploads = () => useSyncExternalStore((l) => (listeners.add(l), () => listeners.delete(l)), () => uploads);

// onDone is told when files have arrived.
export const onDone = new Set<(session: string) => void>();

export function add(session: string, files: readonly { file: File; path: string }[]): void {
  changed([...uploads, ...files.map((f) => ({ key: ++count, session, file: f.file, path: f.path, state: "waiting" as const, sent: 0, replace: false, tries: 0 }))]);
  pump();
}

export function cancel(key: number): void {
  update(key, { state: "cancelled" });
  running.get(key)?.abort();
}

export function cancelAll(session: string): void {
  for (const u of uploads) if (u.session === session && (u.state === "waiting" || u.state === "running" || u.state === "exists")) cancel(u.key);
}

// again repeats a failed upload, or replaces the file that stood in the way.
export function again(keys: readonly number[], replace: boolean): void {
  const set = new Set(keys);
  changed(uploads.map((u) => (set.has(u.key) ? { ...u, state: "waiting", tries: 0, error: undefined, replace: u.replace || replace } : u)));
  pump();
}

// clear forgets what is over.
export function clear(session: string): void {
  changed(uploads.filter((u) => u.session !== session || u.state === "waiting" || u.state === "running"));
}

function pump(): void {
  for (const u of uploads) {
    if (running.size >= atOnce) return;
    if (u.state === "waiting" && !running.has(u.key)) void run(u);
  }
}

async function run(u: Upload): Promise<void> {
  // Taken at once, so that nobody else does.
  running.set(u.key, new XMLHttpRequest());
  update(u.key, { state: "running", tries: u.tries + 1 });
  try {
    const from = u.tries > 0 ? await partial(u) : 0;
    if (find(u.key)?.state === "cancelled") return;
    await put(u, from);
    update(u.key, { state: "done", sent: u.file.size });
    for (const l of onDone) l(u.session);
  } catch (e) {
    const now = find(u.key);
    if (!now || now.state === "cancelled") return;
    const error = asError(e);
    if (error.code === "exists") update(u.key, { state: "exists", sent: 0, error });
    else if (passing(error) && now.tries < maxTries) {
      update(u.key, { state: "waiting", error });
      running.delete(u.key);
      setTimeout(pump, Math.min(1000 * 2 ** now.tries, 15_000));
      return;
    } else update(u.key, { state: "failed", error });
  } finally {
    running.delete(u.key);
    pump();
  }
}

// passing errors are worth another try from where the upload broke off.
const passing = (e: ApiError) => e.status === 0 || e.status === 429 || e.status >= 502 || e.code === "upload_broken" || e.code === "connection_lost" || e.code === "no_partial";

async function partial(u: Upload): Promise<number> {
  const { offset } = await ask(api.GET("/terminal-sessions/{id}/files/partial", { params: { path: { id: u.session }, query: { path: u.path } } }));
  return Math.min(offset, u.file.size);
}

function put(u: Upload, from: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const x = running.get(u.key) ?? new XMLHttpRequest();
    const q = new URLSearchParams({ path: u.path, offset: String(from), size: String(u.file.size), parents: "true" });
    if (u.replace) q.set("replace", "true");
    x.open("PUT", `/api/v1/terminal-sessions/${encodeURIComponent(u.session)}/files/content?${q}`);
    x.setRequestHeader("Content-Type", "application/octet-stream");
    x.upload.onprogress = (e) => update(u.key, { sent: from + e.loaded });
    x.onload = () => {
      let body: unknown;
      try {
        body = JSON.parse(x.responseText);
      } catch {
        body = null;
      }
      if (x.status === 200) resolve();
      else reject(problem(new Response(null, { status: x.status, headers: { "Retry-After": x.getResponseHeader("Retry-After") ?? "" } }), body));
    };
    x.onerror = () => reject(offline());
    x.onabort = () => reject(new ApiError(-1, "cancelled", "Cancelled."));
    x.send(from > 0 ? u.file.slice(from) : u.file);
  });
}

// progress sums the uploads of a session up.
export function progress(all: readonly Upload[], session: string): { files: number; done: number; bytes: number; sent: number; open: number } {
  const p = { files: 0, done: 0, bytes: 0, sent: 0, open: 0 };
  for (const u of all) {
    if (u.session !== session || u.state === "cancelled") continue;
    p.files++;
    p.bytes += u.file.size;
    p.sent += u.state === "done" ? u.file.size : Math.min(u.sent, u.file.size);
    if (u.state === "done") p.done++;
    if (u.state === "waiting" || u.state === "running") p.open++;
  }
  return p;
}
