import { ActionIcon, Anchor, Button, FileButton, Group, Loader, Menu, Progress, Text } from "@mantine/core";
import { IconArrowUp, IconCheck, IconDots, IconDownload, IconFile, IconFolder, IconRefresh, IconTrash, IconUpload, IconX } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { asError } from "~/api/client";
import { bytes } from "~/ui/Bytes";
import { Confirm } from "~/ui/Confirm";
import { ErrorBox } from "~/ui/ErrorBox";
import type { Dropped, Found } from "../terminal/drop";
import { FolderButton, Tool } from "../terminal/FileTools";
import { fileURL, listFiles, removeFile, type WebSession } from "./api";
import { type Row, rowsOf } from "./files";
import { cancel, clear, onDone, type Upload, useUploads } from "./transfers";
import classes from "./web.module.css";

// Files is what the session's browser can upload to pages, and what it
// downloaded.
export function Files({ s, upload, close }: { s: WebSession; upload: (d: Dropped) => void; close: () => void }) {
  const [here, setHere] = useState("");
  const [removing, setRemoving] = useState<Row>();
  const q = useQuery({ queryKey: ["web", "files", s.id], queryFn: () => listFiles(s.id), staleTime: 0 });
  const { refetch } = q;
  useEffect(() => {
    const done = (session: string) => session === s.id && void refetch();
    onDone.add(done);
    return () => void onDone.delete(done);
  }, [s.id, refetch]);
  const rows = rowsOf(q.data ?? [], here);
  const { upload_max: up, download_max: down } = s.policy;
  const take = (files: readonly Found[]) => upload({ files: [...files], folders: [], tooMany: false });
  return (
    <section className={classes.panel} aria-label="Files">
      <Group gap={4} wrap="nowrap" className={classes.panelHead}>
        <Text fw={600} size="sm" style={{ flex: 1 }}>Files</Text>
        {up > 0 && (
          <>
            <FileButton multiple onChange={(fs) => take(fs.map((file) => ({ file, path: file.name })))}>{(p) => <Tool {...p} label="Upload files" icon={<IconUpload size={18} />} />}</FileButton>
            <FolderButton choose={take} />
          </>
        )}
        <Tool label="Read again" icon={q.isFetching ? <Loader size={16} /> : <IconRefresh size={18} />} onClick={() => void refetch()} />
        <Tool label="Close the files" icon={<IconX size={18} />} onClick={close} />
      </Group>
      {here && (
        <Group gap={6} wrap="nowrap" className={classes.path}>
          <Tool label="Up" icon={<IconArrowUp size={18} />} onClick={() => setHere(here.split("/").slice(0, -1).join("/"))} />
          <Text size="sm" className={classes.fileName}>{here}</Text>
        </Group>
      )}
      <div className={classes.panelBody}>
        {q.error ? <ErrorBox error={q.error} again={() => void refetch()} /> : q.isPending ? <Text size="sm" c="dimmed" p="sm">Reading…</Text> : rows.length === 0 ? (
          <Text size="sm" c="dimmed" p="lg" ta="center">{here ? "This folder is empty." : `Nothing is here yet. ${up > 0 ? "Drop files or folders on the picture; the page's own upload button finds them then." : ""}${down > 0 ? " What the session downloads appears here." : ""}`}</Text>
        ) : (
          <ul className={classes.files} aria-label="Entries">
            {rows.map((r) => (
              <li key={r.path}>
                {r.dir ? <IconFolder size={18} className={classes.folder} aria-label="Folder" role="img" /> : <IconFile size={18} aria-label="File" role="img" />}
                {r.dir ? <Anchor component="button" type="button" size="sm" className={classes.fileName} title={r.name} onClick={() => setHere(r.path)}>{r.name}</Anchor>
                  : down > 0 && r.size <= down ? <Anchor size="sm" className={classes.fileName} href={fileURL(s.id, r.path)} download={r.name} title={r.name}>{r.name}</Anchor>
                    : <Text size="sm" className={classes.fileName} title={r.name}>{r.name}</Text>}
                <Text size="xs" c="dimmed" className={classes.size}>{r.dir && r.size === 0 ? "" : bytes(r.size)}</Text>
                <Menu position="bottom-end" withInitialFocusPlaceholder={false}>
                  <Menu.Target><ActionIcon variant="subtle" color="gray" size="sm" aria-label={`Actions for ${r.name}`}><IconDots size={16} /></ActionIcon></Menu.Target>
                  <Menu.Dropdown>
                    {down > 0 && <Menu.Item leftSection={<IconDownload size={16} />} component="a" href={fileURL(s.id, r.path)} download={r.dir ? `${r.name}.tar` : r.name}>{r.dir ? "Download as tar" : "Download"}</Menu.Item>}
                    <Menu.Item color="red" leftSection={<IconTrash size={16} />} onClick={() => setRemoving(r)}>Remove</Menu.Item>
                  </Menu.Dropdown>
                </Menu>
              </li>
            ))}
          </ul>
        )}
      </div>
      <Uploads session={s.id} />
      <Text size="xs" c="dimmed" className={classes.panelFoot}>{[up > 0 ? `Up to ${bytes(up)} per file in` : "Nothing may be uploaded", down > 0 ? `up to ${bytes(down)} out` : "nothing may be downloaded"].join(", ")}. Everything is gone when the session ends.</Text>
      <Confirm opened={removing !== undefined} close={() => setRemoving(undefined)} title={`Remove ${removing?.name}?`} action="Remove" danger run={async () => { if (removing) await removeFile(s.id, removing.path); void refetch(); }}>
        It is removed from the session{removing?.dir ? ", with everything in it" : ""}.
      </Confirm>
    </section>
  );
}

function Uploads({ session }: { session: string }) {
  const own = useUploads().filter((u) => u.session === session);
  if (own.length === 0) return null;
  return (
    <div className={classes.uploads} role="region" aria-label="Uploads">
      {own.map((u) => <Line key={u.key} u={u} />)}
      {own.some((u) => u.state !== "running") && <Button size="compact-xs" variant="default" mt={6} onClick={() => clear(session)}>Clear</Button>}
    </div>
  );
}

function Line({ u }: { u: Upload }) {
  const e = u.error && asError(u.error);
  return (
    <div className={classes.upload}>
      <Group gap={8} wrap="nowrap">
        <Text size="sm" className={classes.fileName}>{u.name}</Text>
        <Text size="xs" c="dimmed" className={classes.size} aria-live="polite">{u.state === "done" ? <IconCheck size={15} aria-label="Uploaded" role="img" /> : u.state === "running" ? `${bytes(u.sent)} of ${bytes(u.size)}` : "Failed"}</Text>
        {u.state === "running" && <ActionIcon size="xs" variant="subtle" color="gray" aria-label={`Cancel ${u.name}`} onClick={() => cancel(u.key)}><IconX size={14} /></ActionIcon>}
      </Group>
      {u.state === "running" && <Progress value={u.size > 0 ? (100 * u.sent) / u.size : 100} size="sm" mt={4} aria-label={`Upload of ${u.name}`} />}
      {e && <Text size="xs" c="red">{e.title} {e.detail}</Text>}
    </div>
  );
}
