import { Paper, Text, Title } from "@mantine/core";
import { type ReactNode, useEffect } from "react";
import { Mark } from "~/app/Mark";
import classes from "./Card.module.css";

// Card is the one thing on a page for strangers.
export function Card({ title, hint, children }: { title: string; hint?: ReactNode; children: ReactNode }) {
  useEffect(() => {
    document.title = `${title} · Caponier`;
  }, [title]);
  return (
    <main className={classes.page}>
      <div className={classes.column}>
        <div className={`brand ${classes.brand}`} aria-hidden="true"><Mark /><span>Caponier</span></div>
        <Paper withBorder className={classes.card}>
          <Title order={1}>{title}</Title>
          {hint && <Text size="sm" c="dimmed" mt={4}>{hint}</Text>}
          <div className={classes.content}>{children}</div>
        </Paper>
      </div>
    </main>
  );
}
