import { type RefObject, useCallback, useEffect, useMemo, useRef, useState } from "react";
import type { Schemas } from "~/api/client";
import type { Recording } from "../words";
import { Engine, type State } from "./engine";
import { readEvents, readKeyframes, sourceOf, type Events } from "./source";
import type { Stage } from "./Stage";

type Map = Schemas["ListRecordingKeyframesKeyframesOutBody"];

const start: State = { t: 0, playing: false, loading: true, following: false, duration: 0 };
const redraw = 100; // ms between pictures of the controls

// usePlayer runs an engine for a recording: the clock, what core is asked for,
// and what the page shows of it.
export function usePlayer(r: Recording, stage: RefObject<Stage | null>, startAt: number) {
  const engine = useRef<Engine>(null);
  const [state, setState] = useState(start);
  const [map, setMap] = useState<Map>();
  const [events, setEvents] = useState<Events>({ list: [], next: 0 });
  const [error, setError] = useState<Error>();
  const [ready, setReady] = useState(false);
  const [round, setRound] = useState(0);
  const have = useRef(events);

  // What there is: again when the recording ended, and while it is live when
  // something came.
  const look = useCallback(async (signal: AbortSignal) => {
    try {
      const [keys, list] = await Promise.all([readKeyframes(r.id, signal), readEvents(r.id, have.current, signal)]);
      if (signal.aborted) return;
      have.current = list;
      setEvents(list);
      setMap(keys);
      setError(undefined);
      engine.current?.grow(keys.duration_s, keys.live, keys.idle ?? []);
    } catch (e) {
      if (!signal.aborted) setError(e instanceof Error ? e : new Error(String(e)));
    }
  }, [r.id]);

  const live = map?.live ?? r.status === "recording";
  useEffect(() => {
    const stop = new AbortController();
    // A finished timeline is sorted by core: it is read afresh.
    if (r.status !== "recording") have.current = { list: [], next: 0 };
    void look(stop.signal);
    return () => stop.abort();
  }, [r.status, round, look]);

  // begin is called when noVNC is ready for frames.
  const begin = useCallback(() => setReady(true), []);
  useEffect(() => {
    if (!ready || !map) return;
    let drawn = 0;
    let due = false;
    const draw = () => {
      due = false;
      drawn = performance.now();
      setState(e.state);
    };
    const changed = () => {
      if (due) return;
      due = true;
      setTimeout(draw, Math.max(0, redraw - (performance.now() - drawn)));
    };
    const e: Engine = new Engine(sourceOf(r.id), (frames) => stage.current?.show(frames), changed, map.duration_s, map.live);
    engine.current = e;
    e.grow(map.duration_s, map.live, map.idle ?? []);
    if (map.live && !startAt) void e.follow();
    else void e.seek(startAt, false);
    let frame = requestAnimationFrame(function go(now) {
      e.tick(now);
      frame = requestAnimationFrame(go);
    });
    return () => {
      cancelAnimationFrame(frame);
      e.stop();
      engine.current = null;
    };
    // The map only starts the engine; grow tells it of later ones.
  }, [ready, r.id]);

  // While a session goes on, what happened is read when pictures came.
  const newest = live ? Math.floor(state.duration) : 0;
  useEffect(() => {
    if (!ready || !live) return;
    const stop = new AbortController();
    const soon = setTimeout(() => void look(stop.signal), 1000);
    return () => {
      clearTimeout(soon);
      stop.abort();
    };
  }, [newest, ready, live, look]);

  const marks = useMemo(() => events.list.filter((m) => m.kind !== "request"), [events]);
  return {
    state, map, events: events.list, marks, error, ready, begin,
    seek: (t: number) => engine.current?.seek(t),
    follow: () => engine.current?.follow(),
    step: () => engine.current?.step(),
    toggle: () => (engine.current?.state.playing ? engine.current.pause() : engine.current?.play()),
    tune: (speed: number, skipIdle: boolean) => {
      if (!engine.current) return;
      engine.current.speed = speed;
      engine.current.skipIdle = skipIdle;
    },
    again: () => {
      setRound((n) => n + 1);
      if (engine.current?.state.error) void engine.current.seek(engine.current.state.t);
    },
  };
}
