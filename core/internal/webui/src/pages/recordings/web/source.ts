import { api, ask, offline, problem } from "~/api/client";
import type { Source } from "./engine";
import { merge, type Moment } from "./events";
import { type Frames, parseFrames } from "./frames";

const waitFor = 20; // seconds that core may hold a request open

async function frames(id: string, query: Record<string, number>, signal: AbortSignal): Promise<Frames> {
  const search = new URLSearchParams(Object.entries(query).map(([k, v]) => [k, v.toFixed(6)]));
  const response = await fetch(`/api/v1/recordings/${encodeURIComponent(id)}/frames?${search}`, { signal, headers: query.wait ? { "Caponier-Background": "true" } : {} }).catch((e: unknown) => {
    if (signal.aborted) throw e;
    throw offline();
  });
  if (!response.ok) throw problem(response, await response.json().catch(() => undefined));
  return parseFrames(await response.arrayBuffer());
}

// sourceOf gives the frames of a recording.
export const sourceOf = (id: string): Source => ({
  from: (from, to, wait, signal) => frames(id, wait ? { from, to, wait: waitFor } : { from, to }, signal),
  after: (after, to, wait, signal) => frames(id, wait ? { after, to, wait: waitFor } : { after, to }, signal),
});

export interface Events {
  list: Moment[];
  next: number;
}

// readEvents reads a timeline on from where it was left.
export async function readEvents(id: string, have: Events, signal?: AbortSignal): Promise<Events> {
  for (;;) {
    const page = await ask(api.GET("/recordings/{id}/timeline", { params: { path: { id }, query: { after: have.next, limit: 10000 } }, signal }));
    have = { list: merge(have.list, page.events ?? []), next: page.next };
    if (!page.more) return have;
  }
}

export const readKeyframes = (id: string, signal?: AbortSignal) => ask(api.GET("/recordings/{id}/keyframes", { params: { path: { id } }, signal }));

export const pictureUrl = (id: string, t: number) => `/api/v1/recordings/${encodeURIComponent(id)}/picture?at=${t.toFixed(3)}`;

export const videoUrl = (id: string, video: string) => `/api/v1/recordings/${encodeURIComponent(id)}/exports/${encodeURIComponent(video)}/file`;
