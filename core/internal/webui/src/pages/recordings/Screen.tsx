import "asciinema-player/dist/bundle/asciinema-player.css";
import { create, type Player as Asciinema } from "asciinema-player";
import { useEffect, useImperativeHandle, useRef, type Ref } from "react";
import { type Cast, squeeze } from "./cast";
import classes from "./recordings.module.css";

export interface Handle {
  // jump goes to a moment of the session, in its own time, and plays on.
  jump(seconds: number): void;
  // now is the moment shown, in the session's own time.
  now(): number;
}

interface Props {
  cast: Cast;
  speed: number;
  skipPauses: boolean;
  startAt: number; // seconds of the session
  marks: readonly [number, string][];
  ref?: Ref<Handle>;
}

// Screen plays a cast. Speed and pauses are set when a player is made, so a
// change makes a new one at the same moment.
export default function Screen({ cast, speed, skipPauses, startAt, marks, ref }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const player = useRef<Asciinema>(null);
  const moment = useRef(startAt);
  const times = useRef({ toShown: (t: number) => t, toReal: (t: number) => t });
  const playing = useRef(false);

  useEffect(() => {
    if (!box.current) return;
    const squeezed = skipPauses ? squeeze(cast, 1) : { cast, toShown: (t: number) => t, toReal: (t: number) => t };
    times.current = squeezed;
    const from = squeezed.toShown(moment.current);
    const p = create({ data: {}, parser: () => ({ cols: cast.cols, rows: cast.rows, events: squeezed.cast.events }) }, box.current, {
      fit: "both", preload: true, speed, startAt: from, poster: `npt:${from || squeezed.cast.duration * 0.6}`, autoPlay: playing.current, terminalFontFamily: '"DejaVu Sans Mono", ui-monospace, monospace',
      theme: "asciinema", markers: marks.map(([t, label]) => [squeezed.toShown(t), label]), controls: true,
    });
    player.current = p;
    p.addEventListener("play", () => (playing.current = true));
    p.addEventListener("pause", () => (playing.current = false));
    p.addEventListener("ended", () => (playing.current = false));
    return () => {
      moment.current = squeezed.toReal(p.getCurrentTime());
      p.dispose();
    };
  }, [cast, speed, skipPauses, marks]);

  useImperativeHandle(ref, () => ({
    jump: (seconds) => {
      const p = player.current;
      if (p) void p.seek(times.current.toShown(Math.max(0, seconds))).then(() => p.play());
    },
    now: () => (player.current ? times.current.toReal(player.current.getCurrentTime()) : 0),
  }), []);

  return <div ref={box} className={classes.screen} />;
}
