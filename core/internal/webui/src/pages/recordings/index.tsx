import { Button, CloseButton, Group, SegmentedControl, Select, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { IconFileSearch, IconMovie, IconSearch } from "@tabler/icons-react";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { useEffect, useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { bytes } from "~/ui/Bytes";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";
import { StateBadge } from "~/ui/StateBadge";
import { Ago } from "~/ui/Time";
import { useList } from "~/ui/useList";
import { Found } from "./Found";
import classes from "./recordings.module.css";
import { clock, type Recording, states } from "./words";

interface Search {
  q?: string; // in transcripts
  user?: string;
  target?: string;
  status?: Recording["status"];
  by?: "list" | "text";
}

// Recordings: by who and where, or by what was typed and shown in them.
export default function Recordings() {
  const search = useSearch({ strict: false }) as Search;
  const navigate = useNavigate();
  const set = (change: Partial<Search>) => void navigate({ to: "/recordings", search: Object.fromEntries(Object.entries({ ...search, ...change }).filter(([, v]) => v)) as never, replace: true });
  const byText = search.by === "text";
  const { can } = useSession();
  return (
    <Page title="Recordings" hint={can("recordings:view") ? undefined : "Those of your own sessions, and those shared with your roles."} fill>
      <Group gap="sm">
        <SegmentedControl aria-label="How to find recordings" value={byText ? "text" : "list"} onChange={(v) => set({ by: v === "text" ? "text" : undefined })} data={[{ value: "list", label: "By session" }, { value: "text", label: "By content" }]} />
        {byText ? (
          <Typed key="text" label="Search in what was typed and shown" placeholder="A command, a file name, an error message…" value={search.q ?? ""} set={(q) => set({ q })} icon={IconFileSearch} wide />
        ) : (
          <>
            <Typed key="user" label="User" placeholder="User" value={search.user ?? ""} set={(user) => set({ user })} icon={IconSearch} />
            <Typed key="target" label="Target" placeholder="Target" value={search.target ?? ""} set={(target) => set({ target })} icon={IconSearch} />
            <Select aria-label="State" placeholder="Any state" clearable w={150} value={search.status ?? null} onChange={(v) => set({ status: (v ?? undefined) as Search["status"] })} data={Object.entries(states).map(([value, s]) => ({ value, label: s.label }))} />
          </>
        )}
      </Group>
      {byText ? <Found text={search.q ?? ""} /> : <List search={search} />}
    </Page>
  );
}

function List({ search }: { search: Search }) {
  const navigate = useNavigate();
  const list = useList<Recording>(["recording", "list", search.user, search.target, search.status], (cursor, signal) =>
    ask(api.GET("/recordings", { params: { query: { user: search.user, target: search.target, status: search.status, cursor, limit: 200 } }, signal })));
  const columns: Column<Recording>[] = [
    { key: "target", header: "Session", width: "minmax(170px, 1.5fr)", render: (r) => <b>{r.account ? `${r.account} on ${r.target_name}` : r.target_name}</b> },
    { key: "user", header: "User", width: "minmax(100px, 1fr)", render: (r) => r.user_name },
    { key: "state", header: "State", width: "112px", render: (r) => <StateBadge state={r.status} {...states[r.status]} /> },
    { key: "started", header: "Started", width: "120px", render: (r) => <Ago at={r.started_at} /> },
    { key: "long", header: "Length", width: "80px", from: 700, align: "end", render: (r) => <span className="nums">{clock(r.duration_s)}</span> },
    { key: "size", header: "Size", width: "80px", from: 1000, align: "end", render: (r) => <span className="nums">{bytes(r.size)}</span> },
    { key: "kept", header: "Kept until", width: "130px", from: 1000, render: (r) => <Ago at={r.expires_at} /> },
  ];
  const filtered = Boolean(search.user || search.target || search.status);
  return (
    <DataTable
      label="Recordings" columns={columns} list={list} rowKey={(r) => r.id} open={(r) => void navigate({ href: `/recordings/${r.id}` })}
      compact={(r) => (
        <div className={classes.compact}>
          <div><b>{r.account ? `${r.account} on ${r.target_name}` : r.target_name}</b><StateBadge state={r.status} {...states[r.status]} /></div>
          <div className={classes.second}>{r.user_name} · <Ago at={r.started_at} /> · {clock(r.duration_s)} · {bytes(r.size)}</div>
        </div>
      )}
      empty={filtered ? <Empty icon={IconSearch} title="Nothing matches" action={<Button variant="default" size="xs" onClick={() => void navigate({ to: "/recordings", search: {} as never })}>Clear the filters</Button>}>Names of users and targets are matched as a whole.</Empty> : <Empty icon={IconMovie} title="No recordings yet">Sessions on targets with recording appear here while they go on.</Empty>}
    />
  );
}

interface TypedProps {
  label: string;
  placeholder: string;
  value: string;
  set: (text: string) => void;
  icon: typeof IconSearch;
  wide?: boolean;
}

function Typed({ label, placeholder, value, set, icon: I, wide }: TypedProps) {
  const [text, setText] = useState(value);
  const [settled] = useDebouncedValue(text.trim(), 250);
  useEffect(() => {
    if (settled !== value) set(settled);
  }, [settled]);
  return (
    <TextInput
      aria-label={label} placeholder={placeholder} value={text} onChange={(e) => setText(e.currentTarget.value)} leftSection={<I size={17} aria-hidden />} type="search"
      rightSection={text && <CloseButton size="sm" aria-label={`Clear: ${label}`} onClick={() => setText("")} />} style={wide ? { flex: "1 1 260px", maxWidth: 560 } : { flex: "1 1 140px", maxWidth: 220 }} spellCheck={false} maxLength={200}
    />
  );
}
