import { Paper, Text, Title } from "@mantine/core";
import { type ReactNode, useEffect } from "react";
import classes from "./Card.module.css";

// Card is the one thing on a page for strangers.
export function Card({ title, hint, children }: { title: string; hint?: ReactNode; children: ReactNode }) {
  useEffect(() => {
    document.title = `${title} · Caponier`;
  }, [title]);
  return (
    <main className={classes.page}>
      <div className={classes.column}>
        <div className={classes.brand} aria-hidden="true">
          <svg viewBox="0 0 32 32" width="28" height="28"><path d="M3 27V12l4-3v4h4V8l5-4 5 4v5h4V9l4 3v15H20v-6a4 4 0 0 0-8 0v6z" fill="currentColor" /></svg>
          <span>Caponier</span>
        </div>
        <Paper withBorder className={classes.card}>
          <Title order={1}>{title}</Title>
          {hint && <Text size="sm" c="dimmed" mt={4}>{hint}</Text>}
          <div className={classes.content}>{children}</div>
        </Paper>
      </div>
    </main>
  );
}
