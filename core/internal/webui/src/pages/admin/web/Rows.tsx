import { ActionIcon, Button, Group, Text } from "@mantine/core";
import { IconArrowUp, IconPlus, IconTrash } from "@tabler/icons-react";
import type { ReactNode } from "react";
import classes from "./web.module.css";

interface Props<T> {
  label: string; // what one row is: "rule"
  rows: readonly T[];
  onChange: (rows: T[]) => void;
  fresh: () => T;
  empty: string;
  ordered?: boolean; // rows can be moved up
  render: (row: T, set: (change: Partial<T>) => void, index: number) => ReactNode;
}

// Rows edits a list of things with several fields each.
export function Rows<T extends object>({ label, rows, onChange, fresh, empty, ordered, render }: Props<T>) {
  const set = (i: number, change: Partial<T>) => onChange(rows.map((r, n) => (n === i ? { ...r, ...change } : r)));
  return (
    <div>
      {rows.length === 0 && <Text size="sm" c="dimmed" mb={6}>{empty}</Text>}
      <ul className={classes.rows}>
        {rows.map((r, i) => (
          <li key={i} className={classes.row} aria-label={`${label} ${i + 1}`}>
            <div className={classes.rowFields}>{render(r, (c) => set(i, c), i)}</div>
            <Group gap={2} wrap="nowrap">
              {ordered && i > 0 && <ActionIcon variant="subtle" color="gray" aria-label={`Move ${label} ${i + 1} up`} onClick={() => onChange(rows.map((x, n) => (n === i - 1 ? r : n === i ? (rows[i - 1] as T) : x)))}><IconArrowUp size={17} /></ActionIcon>}
              <ActionIcon variant="subtle" color="gray" aria-label={`Remove ${label} ${i + 1}`} onClick={() => onChange(rows.filter((_, n) => n !== i))}><IconTrash size={17} /></ActionIcon>
            </Group>
          </li>
        ))}
      </ul>
      <Button size="xs" variant="default" leftSection={<IconPlus size={15} />} onClick={() => onChange([...rows, fresh()])}>Add {label}</Button>
    </div>
  );
}
