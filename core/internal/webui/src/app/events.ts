import { useQueryClient, type QueryClient } from "@tanstack/react-query";
import { createContext, useContext, useEffect, useState } from "react";
import { useSession } from "./session";

export type Live = "connecting" | "live" | "lost";

export interface Change {
  topic: string;
  id?: string;
  data?: unknown;
}

type Listener = (change: Change) => void;
const listeners = new Set<Listener>();

// Things change in bursts (an import, a herd of edges coming back): each topic
// is read again at most once per window.
const windowMs = 250;

// EventFeed keeps ONE stream of changes open and marks what it names as stale:
// query keys begin with the topic, and may hold the ID next.
export function useEventFeed(): Live {
  const client = useQueryClient();
  const { refresh } = useSession();
  const [live, setLive] = useState<Live>("connecting");
  useEffect(() => {
    let source: EventSource | undefined;
    let again: ReturnType<typeof setTimeout> | undefined;
    let wait = 1000;
    const batch = makeBatch(client);
    const open = () => {
      source = new EventSource("/api/v1/events");
      let opened = false;
      source.onopen = () => {
        // What happened while nobody listened is unknown.
        if (opened || wait > 1000) void client.invalidateQueries();
        opened = true;
        wait = 1000;
        setLive("live");
      };
      source.addEventListener("change", (e) => {
        const change = JSON.parse((e as MessageEvent<string>).data) as Change;
        if (change.topic === "user" || change.topic === "role") void refresh();
        batch(change);
      });
      source.addEventListener("resync", () => void client.invalidateQueries());
      source.onerror = () => {
        setLive("lost");
        if (source?.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
        void refresh(); // signed out elsewhere?
        again = setTimeout(open, wait * (0.5 + Math.random()));
        wait = Math.min(wait * 2, 30_000);
      };
    };
    open();
    return () => {
      source?.close();
      clearTimeout(again);
    };
  }, [client, refresh]);
  return live;
}

function makeBatch(client: QueryClient): Listener {
  const topics = new Set<string>();
  let timer: ReturnType<typeof setTimeout> | undefined;
  return (change) => {
    for (const tell of listeners) tell(change);
    topics.add(change.topic);
    timer ??= setTimeout(() => {
      timer = undefined;
      const now = new Set(topics);
      topics.clear();
      void client.invalidateQueries({ predicate: (q) => now.has(String(q.queryKey[0])) });
    }, windowMs);
  };
}

// useChanges calls tell for every change of the topics while mounted.
export function useChanges(topics: readonly string[], tell: Listener): void {
  useEffect(() => {
    const mine: Listener = (c) => {
      if (topics.includes(c.topic)) tell(c);
    };
    listeners.add(mine);
    return () => {
      listeners.delete(mine);
    };
  }, [topics, tell]);
}

export const LiveContext = createContext<Live>("connecting");
export const useLive = () => useContext(LiveContext);
