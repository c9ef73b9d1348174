import { useSyncExternalStore } from "react";
import { ApiError, offline, problem } from "~/api/client";
import { bytes } from "~/ui/Bytes";
import type { Dropped } from "../terminal/drop";
import { fileURL } from "./api";
import { plan, tooLarge } from "./files";
import { archive } from "./tar";

// Upload is one drop or choice on its way into a session: a file, or a tar of
// files and folders.
export interface Upload {
  key: number;
  session: string;
  name: string; // for people
  files: number;
  size: number;
  sent: number;
  state: "running" | "done" | "failed";
  error?: ApiError;
}

let uploads: readonly Upload[] = [];
let count = 0;
const listeners = new Set<() => void>();
const running = new Map<number, { x: XMLHttpRequest; begin: () => void }>();

function changed(next: readonly Upload[]): void {
  uploads = next;
  for (const l of listeners) l();
}
const update = (key: number, change: Partial<Upload>) => changed(uploads.map((u) => (u.key === key ? { ...u, ...change } : u)));

export const useUploads = () => useSyncExternalStore((l) => (listeners.add(l), () => listeners.delete(l)), () => uploads);

// onDone is told when something has arrived.
export const onDone = new Set<(session: string) => void>();

// send uploads what was dropped or chosen, in the order of the drops.
export function send(session: string, d: Dropped, most: number): void {
  const over = tooLarge(d, most);
  const { path, tar, name } = plan(d);
  const size = d.files.reduce((n, f) => n + f.file.size, 0);
  const u: Upload = { key: ++count, session, name, files: d.files.length, size, sent: 0, state: "running" };
  if (over.length > 0) {
    const what = over.length === 1 ? `${over[0]?.path} has ${bytes(over[0]?.file.size ?? 0)}` : `${over.length} files are larger`;
    changed([...uploads, { ...u, state: "failed", error: new ApiError(-1, "too_large", `A file may have at most ${bytes(most)}.`, `${what}. Nothing was uploaded.`) }]);
    return;
  }
  const x = new XMLHttpRequest();
  const body = tar ? archive(d.files, d.folders) : (d.files[0]?.file ?? new Blob());
  x.open("PUT", tar ? `${fileURL(session, "")}?tar=1` : fileURL(session, path));
  x.setRequestHeader("Content-Type", tar ? "application/x-tar" : "application/octet-stream");
  // The archive is a little longer than what is in it.
  x.upload.onprogress = (e) => update(u.key, { sent: Math.min(size, (e.loaded / Math.max(1, body.size)) * size) });
  x.onload = () => {
    if (x.status >= 200 && x.status < 300) {
      update(u.key, { state: "done", sent: size });
      for (const l of onDone) l(session);
    } else {
      let answer: unknown;
      try {
        answer = JSON.parse(x.responseText);
      } catch {
        answer = null;
      }
      update(u.key, { state: "failed", error: problem(new Response(null, { status: x.status, headers: { "Retry-After": x.getResponseHeader("Retry-After") ?? "" } }), answer) });
    }
  };
  x.onerror = () => update(u.key, { state: "failed", error: offline() });
  x.onabort = () => changed(uploads.filter((v) => v.key !== u.key));
  x.onloadend = () => {
    running.delete(u.key);
    // One after the other: the first gets all of the line.
    running.values().next().value?.begin();
  };
  const first = running.size === 0;
  running.set(u.key, { x, begin: () => x.readyState === XMLHttpRequest.OPENED && x.send(body) });
  changed([...uploads, u]);
  if (first) x.send(body);
}

// cancel breaks an upload off.
export function cancel(key: number): void {
  const r = running.get(key);
  if (!r) return;
  if (r.x.readyState === XMLHttpRequest.OPENED && uploads.find((u) => u.key === key)?.sent === 0) {
    // Not begun: abort would tell nobody.
    changed(uploads.filter((u) => u.key !== key));
    if (running.keys().next().value !== key) running.delete(key);
  }
  r.x.abort();
}

// clear forgets what is over.
export const clear = (session: string) => changed(uploads.filter((u) => u.session !== session || u.state === "running"));
