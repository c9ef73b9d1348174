import { Button, CloseButton, Group, Popover, SegmentedControl, Select, Stack, TextInput } from "@mantine/core";
import { useDebouncedCallback } from "@mantine/hooks";
import { IconFilter, IconHistory, IconLock, IconSearch, IconVideo } from "@tabler/icons-react";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { bytes } from "~/ui/Bytes";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";
import { StateBadge } from "~/ui/StateBadge";
import { Ago, Lasting } from "~/ui/Time";
import { useList } from "~/ui/useList";
import classes from "./connections.module.css";
import { RowMenu } from "./RowMenu";
import { type Connection, kindName, kinds, stateOf } from "./words";

interface Search {
  when?: "live" | "past";
  q?: string;
  kind?: string;
  user?: string;
  target?: string;
  site?: string;
  source?: string;
  channel?: string;
  tag?: string;
  from?: string; // days, as yyyy-mm-dd
  to?: string;
  ended?: string;
}

// The less common filters, in the order they are shown.
const more: { key: keyof Search; label: string; hint?: string; type?: string }[] = [
  { key: "user", label: "User" }, { key: "target", label: "Target" }, { key: "site", label: "Site" }, { key: "source", label: "From address" },
  { key: "channel", label: "Command or file", hint: "a part of it" }, { key: "tag", label: "Tag" },
  { key: "from", label: "From day", type: "date" }, { key: "to", label: "To day", type: "date" },
];

// Connections: every use of a target, live and past.
export default function Connections() {
  const search = useSearch({ strict: false }) as Search;
  const navigate = useNavigate();
  const { can } = useSession();
  const set = (change: Partial<Search>) => void navigate({ to: "/connections", search: tidy({ ...search, ...change }), replace: true });
  const list = useList<Connection>(["connection", "list", search], (cursor, signal) =>
    ask(api.GET("/connections", { params: { query: { ...query(search), cursor, limit: 200 } }, signal })));
  const all = can("connections:view");
  const columns: Column<Connection>[] = [
    { key: "state", header: "State", width: "104px", render: (c) => <StateBadge {...stateOf(c)} /> },
    { key: "user", header: "User", width: "minmax(110px, 0.9fr)", render: (c) => <Two a={c.user_name} b={c.source} /> },
    { key: "target", header: "Target", width: "minmax(150px, 1.3fr)", render: (c) => <Two a={c.account ? `${c.account} on ${c.target_name}` : c.target_name} b={[c.site, c.target_address].filter(Boolean).join(" · ")} /> },
    { key: "kind", header: "Kind", width: "108px", from: 700, render: (c) => <span className={classes.kind}>{kindName(c.kind)}{c.recording_id && <IconVideo size={15} stroke={1.7} role="img" aria-label="recorded" />}{c.locked_at && <IconLock size={15} role="img" aria-label="locked" />}</span> },
    { key: "started", header: "Started", width: "112px", from: 700, render: (c) => <Ago at={c.requested_at} /> },
    { key: "lasting", header: "Lasting", width: "96px", from: 700, render: (c) => <Lasting from={c.connected_at} to={c.ended_at} seconds={c.duration_s} /> },
    { key: "bytes", header: "To user", width: "82px", from: 1000, align: "end", render: (c) => <span className="nums">{bytes(c.bytes_out)}</span> },
    { key: "menu", header: "Actions", quiet: true, width: "44px", align: "end", render: (c) => <RowMenu c={c} /> },
  ];
  const filtered = Object.keys(search).length > 0;
  return (
    <Page title="Connections" hint={all ? undefined : "Yours only: others need a permission to see them."} fill>
      <Group gap="sm">
        <Typed value={search.q ?? ""} set={(q) => set({ q })} />
        <SegmentedControl aria-label="Which connections" value={search.when ?? "all"} onChange={(v) => set({ when: v === "all" ? undefined : (v as Search["when"]) })} data={[{ value: "all", label: "All" }, { value: "live", label: "Live" }, { value: "past", label: "Past" }]} />
        <Select aria-label="Kind" placeholder="Any kind" clearable w={140} value={search.kind ?? null} onChange={(kind) => set({ kind: kind ?? undefined })} data={Object.entries(kinds).map(([value, label]) => ({ value, label }))} />
        <Filters search={search} set={set} />
      </Group>
      <DataTable
        label="Connections" columns={columns} list={list} rowKey={(c) => c.id} rowHeight={56}
        open={(c) => void navigate({ to: "/connections/$id", params: { id: c.id } as never })}
        compact={(c) => (
          <div className={classes.compact}>
            <div className={classes.row}><b>{c.account ? `${c.account} on ${c.target_name}` : c.target_name}</b><StateBadge {...stateOf(c)} /></div>
            <div className={classes.row}><span className={classes.second}>{c.user_name} · {kindName(c.kind)} · <Ago at={c.requested_at} /> · <Lasting from={c.connected_at} to={c.ended_at} seconds={c.duration_s} /></span><RowMenu c={c} /></div>
          </div>
        )}
        empty={filtered ? <Empty icon={IconSearch} title="Nothing matches" action={<Button variant="default" size="xs" onClick={() => void navigate({ to: "/connections", search: {} as never })}>Clear the filters</Button>} /> : <Empty icon={IconHistory} title="No connections yet">Every use of a target is listed here, as long as it lasts and after.</Empty>}
      />
    </Page>
  );
}

export function Two({ a, b }: { a: string; b: string }) {
  return (
    <div className={classes.two}>
      <div>{a}</div>
      <div className={classes.second}>{b}</div>
    </div>
  );
}

function Typed({ value, set }: { value: string; set: (q: string) => void }) {
  const [text, setText] = useState(value);
  const later = useDebouncedCallback(set, 200);
  const change = (q: string) => {
    setText(q);
    later(q.trim());
  };
  return (
    <TextInput
      value={text} onChange={(e) => change(e.currentTarget.value)} placeholder="User, target, address or reason" aria-label="Search connections" type="search"
      leftSection={<IconSearch size={17} aria-hidden />} rightSection={text && <CloseButton size="sm" aria-label="Clear the search" onClick={() => change("")} />} style={{ flex: "1 1 240px", maxWidth: 420 }}
    />
  );
}

function Filters({ search, set }: { search: Search; set: (change: Partial<Search>) => void }) {
  const active = more.filter((m) => search[m.key]).length;
  return (
    <Popover width={300} position="bottom-end" trapFocus withArrow>
      <Popover.Target>
        <Button variant="default" leftSection={<IconFilter size={16} />}>{active ? `Filters (${active})` : "Filters"}</Button>
      </Popover.Target>
      <Popover.Dropdown>
        <form
          onSubmit={(e) => {
            e.preventDefault();
            const data = new FormData(e.currentTarget);
            set(Object.fromEntries(more.map((m) => [m.key, String(data.get(m.key) ?? "").trim() || undefined])));
          }}
        >
          <Stack gap={8}>
            {more.map((m) => <TextInput key={m.key} name={m.key} label={m.label} placeholder={m.hint} type={m.type} size="xs" defaultValue={search[m.key] ?? ""} />)}
            <Group justify="space-between" mt={6}>
              <Button size="xs" variant="default" onClick={() => set(Object.fromEntries(more.map((m) => [m.key, undefined])))}>Clear</Button>
              <Button size="xs" type="submit">Apply</Button>
            </Group>
          </Stack>
        </form>
      </Popover.Dropdown>
    </Popover>
  );
}

function tidy(s: Search): never {
  return Object.fromEntries(Object.entries(s).filter(([, v]) => v)) as never;
}

// query turns the page's search into the interface's.
function query(s: Search) {
  const day = (d: string | undefined, plus: number) => {
    if (!d) return undefined;
    const at = new Date(`${d}T00:00:00`);
    at.setDate(at.getDate() + plus);
    return Number.isNaN(at.getTime()) ? undefined : at.toISOString();
  };
  return {
    q: s.q, kind: s.kind, user: s.user, target: s.target, site: s.site, source: s.source, channel: s.channel, tag: s.tag, end_reason: s.ended,
    live: s.when === "live" ? ("true" as const) : s.when === "past" ? ("false" as const) : undefined, from: day(s.from, 0), to: day(s.to, 1),
  };
}
