import { ActionIcon, Button, Group, Progress, Text } from "@mantine/core";
import { IconCheck, IconX } from "@tabler/icons-react";
import { human } from "./Files";
import classes from "./Files.module.css";
import { again, cancel, cancelAll, clear, progress, type Upload, useUploads } from "./transfers";

const shown = 50;

// Uploads lists what is on its way to the target, what needs a decision and
// what failed; what has arrived is only counted.
export function Uploads({ session }: { session: string }) {
  const all = useUploads();
  const own = all.filter((u) => u.session === session && u.state !== "cancelled");
  if (own.length === 0) return null;
  const p = progress(all, session);
  const exists = own.filter((u) => u.state === "exists");
  const failed = own.filter((u) => u.state === "failed");
  const open = own.filter((u) => u.state === "running" || u.state === "failed" || u.state === "exists" || u.state === "waiting");
  open.sort((a, b) => order[a.state] - order[b.state] || a.key - b.key);
  const percent = p.bytes > 0 ? (100 * p.sent) / p.bytes : p.files > 0 ? (100 * p.done) / p.files : 0;
  return (
    <div className={classes.uploads} role="region" aria-label="Uploads">
      <Group gap="xs" wrap="nowrap">
        <Text size="sm" style={{ flex: 1 }} aria-live="polite">
          {p.open > 0 ? `Uploading ${p.done} of ${p.files} files` : failed.length + exists.length > 0 ? `${p.done} of ${p.files} files uploaded` : `${p.files} ${p.files === 1 ? "file" : "files"} uploaded`} · {human(p.sent)} of {human(p.bytes)}
        </Text>
        {p.open > 0 ? (
          <Button size="compact-xs" variant="default" onClick={() => cancelAll(session)}>Cancel all</Button>
        ) : (
          <Button size="compact-xs" variant="default" onClick={() => clear(session)}>Clear</Button>
        )}
      </Group>
      <Progress value={percent} size="sm" mt={6} color={failed.length > 0 ? "red" : undefined} aria-label="Upload progress" />
      {exists.length > 0 && (
        <Group gap="xs" mt={8}>
          <Text size="sm" style={{ flex: 1 }}>{exists.length === 1 ? "A file is there already." : `${exists.length} files are there already.`}</Text>
          <Button size="compact-xs" onClick={() => again(exists.map((u) => u.key), true)}>Replace</Button>
          <Button size="compact-xs" variant="default" onClick={() => exists.forEach((u) => cancel(u.key))}>Keep them</Button>
        </Group>
      )}
      {failed.length > 1 && <Button mt={8} size="compact-xs" variant="default" onClick={() => again(failed.map((u) => u.key), false)}>Try all {failed.length} again</Button>}
      <ul className={classes.uploadList}>
        {open.slice(0, shown).map((u) => <Row key={u.key} u={u} />)}
      </ul>
      {open.length > shown && <Text size="xs" c="dimmed">and {open.length - shown} more</Text>}
    </div>
  );
}

const order: Record<Upload["state"], number> = { failed: 0, exists: 1, running: 2, waiting: 3, done: 4, cancelled: 5 };

function Row({ u }: { u: Upload }) {
  const percent = u.file.size > 0 ? Math.floor((100 * u.sent) / u.file.size) : 0;
  return (
    <li>
      <Text size="xs" className={classes.name} title={u.path}>{u.path}</Text>
      <Text size="xs" c={u.state === "failed" ? "red" : "dimmed"} title={u.error?.message}>
        {u.state === "running" ? `${percent}%` : u.state === "failed" ? (u.error?.title ?? "Failed") : u.state === "exists" ? "Is there" : u.state === "done" ? <IconCheck size={14} /> : "Waiting"}
      </Text>
      {u.state === "failed" && <Button size="compact-xs" variant="default" onClick={() => again([u.key], false)}>Try again</Button>}
      <ActionIcon size="xs" variant="subtle" color="gray" aria-label={`Cancel ${u.path}`} onClick={() => cancel(u.key)}><IconX size={14} /></ActionIcon>
    </li>
  );
}
