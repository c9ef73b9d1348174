import { Text } from "@mantine/core";
import { useEffect, useState } from "react";
import type { ApiError } from "~/api/client";
import classes from "./Card.module.css";

// Trouble says why it did not work and, when core wants a pause, how long.
export function Trouble({ error }: { error?: ApiError }) {
  const [left, setLeft] = useState(0);
  useEffect(() => {
    const seconds = error?.retryAfter ?? 0;
    setLeft(seconds);
    if (seconds === 0) return;
    const until = Date.now() + seconds * 1000;
    const tick = setInterval(() => setLeft(Math.max(0, Math.ceil((until - Date.now()) / 1000))), 500);
    return () => clearInterval(tick);
  }, [error]);
  return (
    <div role="alert" className={classes.trouble}>
      {error && (
        <>
          <Text size="sm" c="var(--bad)" fw={600}>{error.title}</Text>
          {error.detail && <Text size="sm" c="var(--bad)">{error.detail}</Text>}
          {error.errors.map((f) => <Text key={f.field} size="sm" c="var(--bad)">{f.field.replace(/^body\./, "")} {f.message}</Text>)}
        </>
      )}
      {left > 0 && <Text size="sm" c="dimmed" className="nums">Try again in {left} s.</Text>}
    </div>
  );
}
