import { useId } from "react";
import classes from "./Plot.module.css";

export interface Point {
  at: number; // milliseconds
  n: number;
}

// Sparkline is a small line without axes, for table cells.
export function Sparkline({ values, width = 96, height = 24, label }: { values: readonly number[]; width?: number; height?: number; label: string }) {
  const max = Math.max(1, ...values);
  const step = values.length > 1 ? width / (values.length - 1) : width;
  const d = values.map((v, i) => `${i ? "L" : "M"}${(i * step).toFixed(1)} ${(height - 2 - (v / max) * (height - 4)).toFixed(1)}`).join("");
  return (
    <svg width={width} height={height} role="img" aria-label={label} className={classes.spark}>
      <path d={d} fill="none" stroke="currentColor" strokeWidth="1.5" />
    </svg>
  );
}

interface PlotProps {
  series: readonly { name: string; tone: "accent" | "good" | "warn" | "bad"; points: readonly Point[] }[];
  label: string;
  height?: number;
  unit?: string;
}

// Plot draws counts over time as stacked bars with a scale; a table for
// readers that do not see it stands beside it.
export function Plot({ series, label, height = 160, unit = "" }: PlotProps) {
  const id = useId();
  const times = series[0]?.points.map((p) => p.at) ?? [];
  const sums = times.map((_, i) => series.reduce((s, x) => s + (x.points[i]?.n ?? 0), 0));
  const top = nice(Math.max(1, ...sums));
  const w = 100 / Math.max(1, times.length);
  const first = times[0];
  const last = times.at(-1);
  const clock = new Intl.DateTimeFormat(undefined, last !== undefined && first !== undefined && last - first > 2 * 86_400_000 ? { month: "short", day: "numeric" } : { hour: "2-digit", minute: "2-digit" });
  return (
    <figure className={classes.plot} aria-labelledby={id}>
      <figcaption id={id} className={classes.legend}>
        <span>{label}</span>
        {series.length > 1 && series.map((s) => <span key={s.name} className={classes.key} data-tone={s.tone}>{s.name}</span>)}
      </figcaption>
      <div className={classes.area}>
        <div className={classes.scale} aria-hidden><span>{top}{unit}</span><span>{top / 2}{unit}</span><span>0</span></div>
        <svg width="100%" height={height} viewBox={`0 0 100 ${height}`} preserveAspectRatio="none" aria-hidden>
          {[0, 0.5, 1].map((f) => <line key={f} x1="0" x2="100" y1={f * (height - 1) + 0.5} y2={f * (height - 1) + 0.5} className={classes.grid} />)}
          {times.map((t, i) => {
            let y = height;
            return series.map((s) => {
              const n = s.points[i]?.n ?? 0;
              const h = (n / top) * height;
              y -= h;
              return n > 0 && <rect key={`${t}${s.name}`} x={i * w + w * 0.14} width={w * 0.72} y={y} height={h} className={classes.bar} data-tone={s.tone}><title>{`${clock.format(t)}: ${n}${unit} ${s.name}`}</title></rect>;
            });
          })}
        </svg>
      </div>
      <div className={classes.axis} aria-hidden>
        <span>{first !== undefined && clock.format(first)}</span>
        <span>{last !== undefined && clock.format(last)}</span>
      </div>
      <table className={classes.hidden}>
        <caption>{label}</caption>
        <thead><tr><th>Time</th>{series.map((s) => <th key={s.name}>{s.name}</th>)}</tr></thead>
        <tbody>{times.map((t, i) => <tr key={t}><td>{clock.format(t)}</td>{series.map((s) => <td key={s.name}>{s.points[i]?.n ?? 0}</td>)}</tr>)}</tbody>
      </table>
    </figure>
  );
}

// nice rounds a maximum up to 2, 4, 10, 20, 40, 100 … so that half of it is whole.
export function nice(max: number): number {
  for (let base = 1; ; base *= 10) for (const f of [2, 4, 10]) if (f * base >= max) return f * base;
}
