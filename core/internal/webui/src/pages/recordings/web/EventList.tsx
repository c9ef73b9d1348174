import { Chip, Group, Text, TextInput } from "@mantine/core";
import { IconSearch } from "@tabler/icons-react";
import { useVirtualizer } from "@tanstack/react-virtual";
import { useEffect, useMemo, useRef, useState } from "react";
import { Marked } from "../Marked";
import { clock } from "../words";
import { choose, indexAt, kindName, line, type Moment } from "./events";
import classes from "./web.module.css";

interface Props {
  events: readonly Moment[];
  t: number;
  start: string; // text to search at first
  jump: (t: number) => void;
  search: React.Ref<HTMLInputElement>;
}

// EventList is what happened, filtered by kind and text. The event of the moment
// is marked and kept in sight unless somebody is reading elsewhere.
export function EventList({ events, t, start, jump, search }: Props) {
  const [text, setText] = useState(start);
  const [only, setOnly] = useState<string[]>([]);
  const box = useRef<HTMLDivElement>(null);
  const reading = useRef(false);
  const counts = useMemo(() => {
    const n = new Map<string, number>();
    for (const m of events) n.set(m.kind, (n.get(m.kind) ?? 0) + 1);
    return [...n].sort((a, b) => b[1] - a[1]);
  }, [events]);
  const shown = useMemo(() => choose(events, new Set(only), text.trim()), [events, only, text]);
  const now = indexAt(shown, t);
  const rows = useVirtualizer({ count: shown.length, getScrollElement: () => box.current, estimateSize: () => 44, overscan: 8, getItemKey: (i) => `${shown[i]?.t} ${i}` });
  useEffect(() => {
    if (now >= 0 && !reading.current) rows.scrollToIndex(now, { align: "center" });
  }, [now]);
  return (
    <div className={classes.events}>
      <TextInput ref={search} value={text} onChange={(e) => setText(e.currentTarget.value)} aria-label="Search in the events" placeholder="Address, text, file name…" leftSection={<IconSearch size={16} aria-hidden />} type="search" maxLength={200} spellCheck={false} />
      {counts.length > 1 && (
        <Chip.Group multiple value={only} onChange={setOnly}>
          <Group gap={6} role="group" aria-label="Kinds of events">
            {counts.map(([kind, n]) => <Chip key={kind} value={kind} size="xs" variant="light">{kindName(kind)} {n}</Chip>)}
          </Group>
        </Chip.Group>
      )}
      <Text size="xs" c="dimmed" role="status">{shown.length === events.length ? `${events.length} ${events.length === 1 ? "event" : "events"}` : `${shown.length} of ${events.length} events`}</Text>
      <div ref={box} className={classes.rows} onPointerEnter={() => (reading.current = true)} onPointerLeave={() => (reading.current = false)}>
        <ol style={{ height: rows.getTotalSize() }}>
          {rows.getVirtualItems().map((row) => {
            const m = shown[row.index] as Moment;
            return (
              <li key={row.key} ref={rows.measureElement} data-index={row.index} style={{ transform: `translateY(${row.start}px)` }}>
                <button type="button" onClick={() => jump(m.t)} aria-current={row.index === now || undefined} data-kind={m.kind}>
                  <span className="nums">{clock(m.t)}</span>
                  <span><b>{kindName(m.kind)}</b> <code><Marked line={short(line(m))} text={text.trim()} /></code></span>
                </button>
              </li>
            );
          })}
        </ol>
      </div>
    </div>
  );
}

const most = 300;
const short = (s: string) => (s.length > most ? `${s.slice(0, most)}…` : s);
