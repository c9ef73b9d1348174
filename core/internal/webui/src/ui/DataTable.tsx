import { Skeleton } from "@mantine/core";
import { useVirtualizer } from "@tanstack/react-virtual";
import { type CSSProperties, type KeyboardEvent, type ReactNode, useEffect, useRef } from "react";
import classes from "./DataTable.module.css";
import { ErrorBox } from "./ErrorBox";
import type { List } from "./useList";

export interface Column<T> {
  key: string;
  header: string;
  quiet?: boolean; // the header is for screen readers only
  // width as in grid-template-columns: "120px", "minmax(140px, 1.5fr)".
  width: string;
  render: (row: T) => ReactNode;
  // from hides the column of tables narrower than this many pixels.
  from?: 700 | 1000 | 1250;
  align?: "end";
  // sort makes the header a button; the page orders its rows itself.
  sort?: "asc" | "desc" | "none";
  onSort?: () => void;
}

interface Props<T> {
  label: string; // what the rows are, for readers: "Connections"
  columns: readonly Column<T>[];
  list: List<T>;
  rowKey: (row: T) => string;
  empty: ReactNode;
  // open is what Enter or a click on a row does.
  open?: (row: T) => void;
  // compact is what a row shows on a phone; without it the columns stay.
  compact?: (row: T) => ReactNode;
  rowHeight?: number;
  // selected marks a row.
  selected?: string;
}

// DataTable shows any number of rows: only those in sight exist, the next page
// is read before the end is reached. Arrow keys walk, Enter opens.
export function DataTable<T>({ label, columns, list, rowKey, empty, open, compact, rowHeight = 48, selected }: Props<T>) {
  const scroller = useRef<HTMLDivElement>(null);
  const { rows, loading, error, more, loadMore, again } = list;
  const virtual = useVirtualizer({
    count: rows.length,
    getScrollElement: () => scroller.current,
    estimateSize: () => rowHeight,
    overscan: 12,
    getItemKey: (i) => rowKey(rows[i] as T),
  });
  const items = virtual.getVirtualItems();
  const lastSeen = items.at(-1)?.index ?? 0;
  useEffect(() => {
    if (more && lastSeen >= rows.length - 30) loadMore();
  }, [more, lastSeen, rows.length, loadMore]);

  const walk = (e: KeyboardEvent, index: number) => {
    const steps: Record<string, number> = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -rows.length, End: rows.length };
    if (e.target !== e.currentTarget) return;
    const row = rows[index];
    if (e.key === "Enter" && open && row) {
      e.preventDefault();
      open(row);
      return;
    }
    const step = steps[e.key];
    if (step === undefined) return;
    e.preventDefault();
    const to = Math.min(rows.length - 1, Math.max(0, index + step));
    virtual.scrollToIndex(to);
    requestAnimationFrame(() => scroller.current?.querySelector<HTMLElement>(`[data-index="${to}"]`)?.focus({ preventScroll: true }));
  };

  if (error && rows.length === 0) return <ErrorBox error={error} again={again} />;
  return (
    <div className={classes.box}>
      {error !== null && error !== undefined && <ErrorBox error={error} again={again} />}
      <div ref={scroller} className={classes.scroll} data-compact={compact ? true : undefined}>
        <div role="table" aria-label={label} aria-rowcount={more ? -1 : rows.length + 1} aria-busy={loading} className={classes.table} style={templates(columns)}>
          <div role="rowgroup" className={classes.head}>
            <div role="row" className={classes.row} aria-rowindex={1}>
              {columns.map((c) => (
                <div key={c.key} role="columnheader" className={classes.cell} data-from={c.from} data-align={c.align} aria-sort={c.sort === "asc" ? "ascending" : c.sort === "desc" ? "descending" : undefined}>
                  {c.onSort ? (
                    <button type="button" className={classes.sort} onClick={c.onSort}>{c.header}<span aria-hidden>{c.sort === "asc" ? " ↑" : c.sort === "desc" ? " ↓" : ""}</span></button>
                  ) : c.quiet ? <span className={classes.quiet}>{c.header}</span> : c.header}
                </div>
              ))}
            </div>
          </div>
          <div role="rowgroup" className={classes.body} style={{ height: loading ? undefined : virtual.getTotalSize() }}>
            {loading
              ? Array.from({ length: 8 }, (_, i) => <div key={i} role="row" className={classes.waiting}><div role="cell"><Skeleton height={14} width={`${90 - ((i * 17) % 45)}%`} /></div></div>)
              : items.map((v) => {
                  const row = rows[v.index] as T;
                  const key = rowKey(row);
                  return (
                    <div
                      key={v.key} role="row" aria-rowindex={v.index + 2} data-index={v.index} ref={virtual.measureElement}
                      className={classes.line} data-open={open ? true : undefined} data-selected={key === selected || undefined}
                      tabIndex={0} onKeyDown={(e) => walk(e, v.index)}
                      onClick={open && ((e) => !(e.target as HTMLElement).closest("a,button,input,label,[role=menu],[role=dialog]") && !getSelection()?.toString() && open(row))}
                      style={{ transform: `translateY(${v.start}px)` }}
                    >
                      {compact && <div role="cell" className={classes.compact}>{compact(row)}</div>}
                      {columns.map((c) => <div key={c.key} role="cell" className={classes.cell} data-from={c.from} data-align={c.align}>{c.render(row)}</div>)}
                    </div>
                  );
                })}
          </div>
        </div>
        {!loading && rows.length === 0 && empty}
      </div>
      {rows.length > 0 && (
        <div className={classes.foot} aria-live="polite">
          {more ? `${rows.length.toLocaleString()} shown, more as you scroll` : `${rows.length.toLocaleString()} ${rows.length === 1 ? "entry" : "entries"}`}
        </div>
      )}
    </div>
  );
}

// Columns that give way on narrow tables need a template for each width.
function templates<T>(columns: readonly Column<T>[]): CSSProperties {
  const style: Record<string, string> = { "--all": columns.map((c) => c.width).join(" ") };
  for (const step of [700, 1000, 1250]) {
    style[`--to${step}`] = columns.filter((c) => !c.from || c.from < step).map((c) => c.width).join(" ");
  }
  return style;
}
