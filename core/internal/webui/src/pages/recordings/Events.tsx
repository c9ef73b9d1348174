import { Skeleton, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { api, ask } from "~/api/client";
import { ErrorBox } from "~/ui/ErrorBox";
import classes from "./recordings.module.css";
import { clock } from "./words";

// Events are what was opened in the session besides what was shown.
export function Events({ id, jump }: { id: string; jump: (seconds: number) => void }) {
  const q = useQuery({ queryKey: ["recording", "events", id], queryFn: ({ signal }) => ask(api.GET("/recordings/{id}/events", { params: { path: { id }, query: { limit: 1000 } }, signal })) });
  if (q.error) return <ErrorBox error={q.error} again={() => void q.refetch()} />;
  if (!q.data) return <Skeleton height={80} mt="sm" />;
  const events = q.data.items ?? [];
  if (events.length === 0) return <Text size="sm" c="dimmed" mt="sm">Nothing besides the screen.</Text>;
  return (
    <ol className={classes.hits}>
      {events.map((e, i) => (
        <li key={`${e.seconds} ${i}`}>
          <button type="button" onClick={() => jump(e.seconds)}>
            <span className="nums">{clock(e.seconds)}</span>
            <span><b>{e.kind.replaceAll("_", " ")}</b> <code>{Object.entries(e.fields ?? {}).map(([k, v]) => `${k}=${v}`).join(" ")}</code></span>
          </button>
        </li>
      ))}
    </ol>
  );
}
