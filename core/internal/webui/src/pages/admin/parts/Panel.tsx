import { Group, Title } from "@mantine/core";
import type { ReactNode } from "react";
import classes from "./Panel.module.css";

// Panel is a titled box of a page.
export function Panel({ title, hint, actions, children, tight }: { title?: ReactNode; hint?: ReactNode; actions?: ReactNode; children: ReactNode; tight?: boolean }) {
  return (
    <section className={classes.panel} data-tight={tight || undefined}>
      {(title || actions) && (
        <Group className={classes.head} justify="space-between" wrap="nowrap" gap="sm">
          <div>
            {title && <Title order={2} size="h3">{title}</Title>}
            {hint && <div className={classes.hint}>{hint}</div>}
          </div>
          {actions && <Group gap="xs" wrap="nowrap">{actions}</Group>}
        </Group>
      )}
      {children}
    </section>
  );
}

// Facts is a list of names and values.
export function Facts({ rows }: { rows: readonly (readonly [string, ReactNode] | false)[] }) {
  return (
    <dl className={classes.facts}>
      {rows.map((r) => r && (
        <div key={r[0]}>
          <dt>{r[0]}</dt>
          <dd>{r[1]}</dd>
        </div>
      ))}
    </dl>
  );
}
