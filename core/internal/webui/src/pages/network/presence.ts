import { useEffect, useRef } from "react";
import { api, ask, asError } from "~/api/client";
import { useChanges } from "~/app/events";

const topics = ["network"] as const;
const everyMs = 10_000;

// usePresence tells core that the user is there, for each open session, as
// long as the page is. Browsers slow the timers of hidden pages down, so that
// news from core, which come at least as often, count as ticks too. ended is
// told when core says that a session is over, and why.
export function usePresence(ids: readonly string[], ended: (id: string, why: string) => void): void {
  const last = useRef(new Map<string, number>());
  const now = useRef({ ids, ended });
  now.current = { ids, ended };
  const beat = useRef(() => {
    for (const id of now.current.ids) {
      if (Date.now() - (last.current.get(id) ?? 0) < everyMs - 500) continue;
      last.current.set(id, Date.now());
      ask(api.POST("/network-sessions/{id}/presence", { params: { path: { id } } })).catch((e: unknown) => {
        const error = asError(e);
        if (error.status === 409) now.current.ended(id, error.detail);
      });
    }
  });
  useChanges(topics, beat.current);
  const key = ids.join();
  useEffect(() => {
    if (key === "") return;
    beat.current();
    const timer = setInterval(beat.current, everyMs);
    return () => clearInterval(timer);
  }, [key]);
}
