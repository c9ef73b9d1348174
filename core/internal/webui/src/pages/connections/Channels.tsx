import { Button, Skeleton, Text } from "@mantine/core";
import { api, ask, type Schemas } from "~/api/client";
import { ErrorBox } from "~/ui/ErrorBox";
import { useList } from "~/ui/useList";
import classes from "./connections.module.css";

const names: Record<string, string> = {
  shell: "Shell", exec: "Command", sftp: "Files", file: "File", forward: "Forward", remote_forward: "Remote port", x11: "X11", agent: "Agent", window: "Window", certificate: "Certificate", exit: "Exit status", lock: "Locked", unlock: "Unlocked", watch: "Watched",
};

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

// Channels is what happened inside a connection, in order.
export function Channels({ id }: { id: string }) {
  const list = useList<Schemas["ConnChannelEntry"]>(["connection", "channels", id], (cursor, signal) =>
    ask(api.GET("/connections/{id}/channels", { params: { path: { id }, query: { cursor, limit: 200 } }, signal })));
  if (list.error) return <ErrorBox error={list.error} again={list.again} />;
  if (list.loading) return <Skeleton height={60} />;
  if (list.rows.length === 0) return <Text size="sm" c="dimmed">Nothing was opened inside it.</Text>;
  return (
    <>
      <ol className={classes.channels} tabIndex={0} aria-label="What happened inside the connection">
        {list.rows.map((e) => (
          <li key={e.seq}><time dateTime={e.at}>{clock.format(new Date(e.at))}</time><span>{names[e.kind] ?? e.kind}</span><code>{e.detail}</code></li>
        ))}
      </ol>
      {list.more && <Button size="xs" variant="default" mt="sm" onClick={list.loadMore} loading={list.fetching}>Show more</Button>}
    </>
  );
}
