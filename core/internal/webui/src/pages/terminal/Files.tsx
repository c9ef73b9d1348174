import { ActionIcon, Anchor, Button, Checkbox, FileButton, Group, Loader, Menu, Modal, Stack, Text, TextInput } from "@mantine/core";
import {
  IconArrowUp, IconDots, IconDownload, IconFile, IconFolder, IconFolderPlus, IconHome, IconLink, IconRefresh, IconTrash, IconUpload, IconX,
} from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useVirtualizer } from "@tanstack/react-virtual";
import { type DragEvent, useCallback, useEffect, useRef, useState } from "react";
import { api, asError, ask } from "~/api/client";
import { ErrorBox } from "~/ui/ErrorBox";
import { above, collect, type Found, join } from "./drop";
import { FolderButton, Tool } from "./FileTools";
import classes from "./Files.module.css";
import { Uploads } from "./Uploads";
import { add, onDone } from "./transfers";

type Entry = { name: string; type: string; size: number; mode: string; modified_at: string; link_type?: string };
type Asking = { what: "mkdir" | "rename" | "delete"; names: string[] };

const isDir = (e: Entry) => e.type === "dir" || e.link_type === "dir";
const contentURL = (id: string, path: string) => `/api/v1/terminal-sessions/${encodeURIComponent(id)}/files/content?${new URLSearchParams({ path })}`;

// Files shows the target's directories beside its terminal.
export function Files({ id, say, close }: { id: string; say: (t: string) => void; close: () => void }) {
  const [path, setPath] = useState("");
  const [typed, setTyped] = useState<string>();
  const [picked, setPicked] = useState<ReadonlySet<string>>(new Set());
  const [asking, setAsking] = useState<Asking>();
  const [over, setOver] = useState(false);
  const client = useQueryClient();
  const key = ["terminal-files", id, path];
  const { data, error, isPending, isFetching } = useQuery({
    queryKey: key,
    queryFn: () => ask(api.GET("/terminal-sessions/{id}/files", { params: { path: { id }, query: { path } } })),
    staleTime: 0,
    retry: false,
  });
  const here = data?.path ?? path;
  const entries = (data?.entries ?? []) as Entry[];
  const refresh = useCallback(() => client.invalidateQueries({ queryKey: ["terminal-files", id] }), [client, id]);
  const go = (to: string) => {
    setPath(to);
    setTyped(undefined);
    setPicked(new Set());
  };
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const done = (session: string) => {
      if (session !== id || timer) return;
      timer = setTimeout(() => {
        timer = undefined;
        void refresh();
      }, 500);
    };
    onDone.add(done);
    return () => {
      onDone.delete(done);
      clearTimeout(timer);
    };
  }, [id, refresh]);

  const upload = (files: readonly Found[]) => add(id, files.map((f) => ({ file: f.file, path: join(here, f.path) })));
  const dropped = async (e: DragEvent) => {
    e.preventDefault();
    setOver(false);
    const found = await collect(e.dataTransfer).catch(() => null);
    if (!found) return say("The browser could not read what was dropped.");
    if (found.tooMany) say("That is too many files at once: the first 20,000 are uploaded.");
    upload(found.files);
    for (const f of found.folders) await ask(api.POST("/terminal-sessions/{id}/files/mkdir", { params: { path: { id } }, body: { path: join(here, f) } })).catch((x) => say(asError(x).message));
    if (found.folders.length > 0) void refresh();
  };
  const toggle = (name: string) => setPicked((was) => {
    const now = new Set(was);
    if (!now.delete(name)) now.add(name);
    return now;
  });
  return (
    <section
      className={classes.panel} aria-label="Files" data-over={over || undefined}
      onDragOver={(e) => {
        if (![...e.dataTransfer.types].includes("Files")) return;
        e.preventDefault();
        e.dataTransfer.dropEffect = "copy";
        setOver(true);
      }}
      onDragLeave={(e) => {
        if (!e.currentTarget.contains(e.relatedTarget as Node | null)) setOver(false);
      }}
      onDrop={(e) => void dropped(e)}
    >
      <Group gap={4} wrap="nowrap" className={classes.head}>
        <Text fw={600} size="sm" style={{ flex: 1 }}>Files</Text>
        <FileButton multiple onChange={(fs) => upload(fs.map((file) => ({ file, path: file.name })))}>
          {(props) => <Tool {...props} label="Upload files" icon={<IconUpload size={18} />} />}
        </FileButton>
        <FolderButton choose={upload} />
        <Tool label="New folder" icon={<IconFolderPlus size={18} />} onClick={() => setAsking({ what: "mkdir", names: [] })} />
        <Tool label="Close the file panel" icon={<IconX size={18} />} onClick={close} />
      </Group>
      <Group gap={4} wrap="nowrap" className={classes.path}>
        <Tool label="Up" icon={<IconArrowUp size={18} />} disabled={here === "/" || !data} onClick={() => go(above(here))} />
        <Tool label="Home directory" icon={<IconHome size={18} />} onClick={() => go("")} />
        <form style={{ flex: 1 }} onSubmit={(e) => (e.preventDefault(), go(typed ?? here))}>
          <TextInput size="xs" aria-label="Directory" className="mono" value={typed ?? here} onChange={(e) => setTyped(e.currentTarget.value)} spellCheck={false} />
        </form>
        <Tool label="Read again" icon={isFetching ? <Loader size={16} /> : <IconRefresh size={18} />} onClick={() => void refresh()} />
      </Group>
      {error ? (
        <div className={classes.pad}><ErrorBox error={error} again={() => void refresh()} /></div>
      ) : isPending ? (
        <Group className={classes.pad} gap="xs"><Loader size="sm" /><Text size="sm" c="dimmed">Reading the directory…</Text></Group>
      ) : (
        <List id={id} here={here} entries={entries} picked={picked} toggle={toggle} go={go} ask={setAsking} />
      )}
      {data?.truncated && <Text size="xs" c="dimmed" className={classes.pad}>Only the first {entries.length.toLocaleString("en")} entries are shown.</Text>}
      {picked.size > 0 && (
        <Group gap="xs" className={classes.foot}>
          <Text size="sm" style={{ flex: 1 }}>{picked.size} selected</Text>
          <Button size="compact-sm" variant="default" leftSection={<IconDownload size={16} />} onClick={() => [...picked].forEach((n, i) => setTimeout(() => download(contentURL(id, join(here, n))), i * 400))}>Download</Button>
          <Button size="compact-sm" variant="default" color="red" leftSection={<IconTrash size={16} />} onClick={() => setAsking({ what: "delete", names: [...picked] })}>Delete</Button>
        </Group>
      )}
      <Uploads session={id} />
      {over && <div className={classes.drop} aria-hidden><IconUpload size={32} /><span>Drop to upload to {here}</span></div>}
      <Modal opened={asking !== undefined} onClose={() => setAsking(undefined)} title={asking && titles[asking.what]}>
        {asking && <Ask key={asking.what} id={id} here={here} asking={asking} done={() => (setAsking(undefined), setPicked(new Set()), void refresh())} cancel={() => setAsking(undefined)} />}
      </Modal>
    </section>
  );
}

const titles = { mkdir: "New folder", rename: "Rename", delete: "Delete" };

function download(url: string): void {
  const a = document.createElement("a");
  a.href = url;
  a.download = "";
  a.click();
}

interface ListProps {
  id: string;
  here: string;
  entries: Entry[];
  picked: ReadonlySet<string>;
  toggle: (name: string) => void;
  go: (path: string) => void;
  ask: (a: Asking) => void;
}

function List({ id, here, entries, picked, toggle, go, ask }: ListProps) {
  const box = useRef<HTMLDivElement>(null);
  const rows = useVirtualizer({ count: entries.length, getScrollElement: () => box.current, estimateSize: () => 34, overscan: 12 });
  if (entries.length === 0) return <Text size="sm" c="dimmed" className={classes.empty}>This directory is empty. Drop files or folders here to upload them.</Text>;
  return (
    <div ref={box} className={classes.list} tabIndex={0} role="region" aria-label="Entries">
      <ul style={{ height: rows.getTotalSize() }}>
        {rows.getVirtualItems().map((row) => {
          const e = entries[row.index]!;
          const path = join(here, e.name);
          return (
            <li key={e.name} className={classes.row} style={{ transform: `translateY(${row.start}px)` }} data-picked={picked.has(e.name) || undefined}>
              <Checkbox size="xs" aria-label={`Select ${e.name}`} checked={picked.has(e.name)} onChange={() => toggle(e.name)} />
              {isDir(e) ? <IconFolder size={18} className={classes.folder} aria-label="Folder" /> : e.type === "link" ? <IconLink size={18} aria-label="Link" /> : <IconFile size={18} aria-label="File" />}
              {isDir(e) ? (
                <Anchor component="button" type="button" size="sm" className={classes.name} title={e.name} onClick={() => go(path)}>{e.name}</Anchor>
              ) : (
                <Anchor size="sm" className={classes.name} href={contentURL(id, path)} download title={`${e.name}, ${e.mode}, ${new Date(e.modified_at).toLocaleString("en-GB")}`}>{e.name}</Anchor>
              )}
              <Text size="xs" c="dimmed" className={classes.size}>{isDir(e) ? "" : human(e.size)}</Text>
              <Menu position="bottom-end">
                <Menu.Target><ActionIcon variant="subtle" color="gray" size="sm" aria-label={`Actions for ${e.name}`}><IconDots size={16} /></ActionIcon></Menu.Target>
                <Menu.Dropdown>
                  <Menu.Item leftSection={<IconDownload size={16} />} onClick={() => download(contentURL(id, path))}>{isDir(e) ? "Download as zip" : "Download"}</Menu.Item>
                  <Menu.Item onClick={() => ask({ what: "rename", names: [e.name] })}>Rename or move</Menu.Item>
                  <Menu.Item color="red" leftSection={<IconTrash size={16} />} onClick={() => ask({ what: "delete", names: [e.name] })}>Delete</Menu.Item>
                </Menu.Dropdown>
              </Menu>
            </li>
          );
        })}
      </ul>
    </div>
  );
}

export function human(n: number): string {
  if (n < 1024) return `${n} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let i = -1;
  do {
    n /= 1024;
    i++;
  } while (n >= 1024 && i < units.length - 1);
  return `${n < 10 ? n.toFixed(1) : Math.round(n)} ${units[i]}`;
}

function Ask({ id, here, asking, done, cancel }: { id: string; here: string; asking: Asking; done: () => void; cancel: () => void }) {
  const [text, setText] = useState(asking.what === "rename" ? join(here, asking.names[0]!) : "");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const params = { path: { id } };
  const run = async () => {
    if (asking.what === "mkdir") await ask(api.POST("/terminal-sessions/{id}/files/mkdir", { params, body: { path: join(here, text) } }));
    else if (asking.what === "rename") await ask(api.POST("/terminal-sessions/{id}/files/rename", { params, body: { from: join(here, asking.names[0]!), to: text } }));
    else for (const n of asking.names) await ask(api.POST("/terminal-sessions/{id}/files/delete", { params, body: { path: join(here, n), recursive: true } }));
  };
  const submit = async () => {
    setBusy(true);
    setError(undefined);
    try {
      await run();
      done();
    } catch (e) {
      setError(e);
    } finally {
      setBusy(false);
    }
  };
  return (
    <form onSubmit={(e) => (e.preventDefault(), void submit())}>
      <Stack gap="md">
        {asking.what === "delete" ? (
          <Text size="sm">
            {asking.names.length === 1 ? <>Delete <b>{asking.names[0]}</b> on the target?</> : <>Delete {asking.names.length} entries on the target?</>} Folders go with everything in them. This cannot be undone.
          </Text>
        ) : (
          <TextInput label={asking.what === "mkdir" ? "Name" : "New path"} value={text} onChange={(e) => setText(e.currentTarget.value)} required data-autofocus spellCheck={false} />
        )}
        {error !== undefined && <ErrorBox error={error} />}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={cancel}>Cancel</Button>
          <Button type="submit" loading={busy} color={asking.what === "delete" ? "red" : undefined}>{asking.what === "mkdir" ? "Make folder" : asking.what === "rename" ? "Rename" : "Delete"}</Button>
        </Group>
      </Stack>
    </form>
  );
}
