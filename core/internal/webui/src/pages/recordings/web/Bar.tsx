import { useMemo, useRef, useState } from "react";
import { clock } from "../words";
import { kindName, type Moment } from "./events";
import classes from "./web.module.css";

interface Props {
  t: number;
  duration: number;
  activity: readonly number[];
  events: readonly Moment[]; // shown as marks
  seek: (t: number) => void;
}

const steps = 100;

// Bar is the time of the session: how much happened when, marks of events, and
// where the player is. A click or drag goes there.
export function Bar({ t, duration, activity, events, seek }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const [over, setOver] = useState<number>();
  const heights = useMemo(() => {
    const most = Math.log1p(Math.max(...activity, 1));
    return activity.map((v) => (v > 0 ? 0.12 + 0.88 * (Math.log1p(v) / most) : 0));
  }, [activity]);
  // Marks that would fall on each other are one.
  const marks = useMemo(() => [...new Map(events.map((m) => [`${m.kind} ${Math.round((m.t / duration) * 400)}`, m])).values()], [events, duration]);
  const at = (x: number) => {
    const r = box.current?.getBoundingClientRect();
    return r ? Math.min(Math.max((x - r.left) / r.width, 0), 1) * duration : 0;
  };
  const part = (s: number) => `${duration > 0 ? (100 * Math.min(s, duration)) / duration : 0}%`;
  return (
    <div
      ref={box} className={classes.bar} role="slider" tabIndex={0} aria-label="Time" aria-valuemin={0} aria-valuemax={Math.round(duration)} aria-valuenow={Math.round(t)} aria-valuetext={`${clock(t)} of ${clock(duration)}`}
      onPointerDown={(e) => {
        e.currentTarget.setPointerCapture(e.pointerId);
        seek(at(e.clientX));
      }}
      onPointerMove={(e) => {
        const to = at(e.clientX);
        setOver(to);
        if (e.buttons & 1 && Math.abs(to - t) > duration / steps / 4) seek(to);
      }}
      onPointerLeave={() => setOver(undefined)}
    >
      <svg viewBox={`0 0 ${heights.length || 1} 1`} preserveAspectRatio="none" aria-hidden>
        {heights.map((h, i) => h > 0 && <rect key={i} x={i} y={1 - h} width={0.9} height={h} />)}
      </svg>
      {marks.map((m, i) => <i key={i} className={classes.mark} data-kind={m.kind} style={{ left: part(m.t) }} title={`${kindName(m.kind)}, ${clock(m.t)}`} />)}
      <i className={classes.done} style={{ width: part(t) }} />
      <i className={classes.here} style={{ left: part(t) }} />
      {over !== undefined && <span className={classes.over} style={{ left: part(over) }}>{clock(over)}</span>}
    </div>
  );
}
