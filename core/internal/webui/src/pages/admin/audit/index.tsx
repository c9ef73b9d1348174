import { Button, Menu, Select, TextInput } from "@mantine/core";
import { IconChevronDown, IconDownload, IconShieldCheck } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useMemo, useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";
import { Time } from "~/ui/Time";
import { useList } from "~/ui/useList";
import table from "../parts/Table.module.css";
import { EventModal } from "./Event";
import { type Filter, type Span, exportURL, query, spans } from "./filter";
import { type Entry, OutcomeBadge } from "./Line";
import { Verify } from "./Verify";
import { sentence } from "./words";

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

// In a log the seconds matter.
function When({ at }: { at: string }) {
  const d = new Date(at);
  return d.toDateString() === new Date().toDateString() ? <time dateTime={at} className="nums">{clock.format(d)}</time> : <Time at={at} />;
}

const columns: Column<Entry>[] = [
  { key: "at", header: "When", width: "150px", render: (e) => <When at={e.time} /> },
  { key: "what", header: "What", width: "minmax(220px, 3fr)", render: (e) => <span title={sentence(e)}>{sentence(e)}</span> },
  { key: "out", header: "Outcome", width: "90px", from: 700, render: (e) => <OutcomeBadge outcome={e.outcome} /> },
  { key: "from", header: "From", width: "118px", from: 700, render: (e) => e.actor.source ? <span className="mono">{e.actor.source}</span> : "–" },
  { key: "type", header: "Type", width: "minmax(150px, 0.8fr)", from: 700, render: (e) => <span className="mono">{e.type}</span> },
  { key: "seq", header: "No.", width: "70px", from: 1250, align: "end", render: (e) => <span className="nums">{e.seq}</span> },
];

export default function Audit() {
  const { everywhere } = useSession();
  const [filter, setFilter] = useState<Filter>({ type: "", outcome: "", about: "", span: "all" });
  const [verifying, setVerifying] = useState(false);
  const [shown, setShown] = useState<Entry>();
  const set = (change: Partial<Filter>) => setFilter((f) => ({ ...f, ...change }));
  const types = useQuery({ queryKey: ["audit-types"], queryFn: ({ signal }) => ask(api.GET("/audit-events/types", { signal })) });
  const options = useMemo(() => {
    const all = (types.data ?? []).map((t) => t.type);
    const rooms = [...new Set(all.map((t) => `${t.split(".")[0]}.`))];
    return [{ group: "Everything about", items: rooms.map((r) => ({ value: r, label: r.slice(0, -1) })) }, { group: "One type", items: all }];
  }, [types.data]);
  const list = useList(["audit", "list", filter], (cursor, signal) => ask(api.GET("/audit-events", { params: { query: { ...query(filter, Date.now()), cursor, limit: 200 } }, signal })));
  const filtered = filter.type !== "" || filter.outcome !== "" || filter.about !== "" || filter.span !== "all";
  return (
    <Page
      title="Audit log" fill hint="Every event is chained to the one before; new ones appear by themselves."
      actions={
        <>
          {everywhere("audit:view") && <Button variant="default" leftSection={<IconShieldCheck size={17} />} onClick={() => setVerifying(true)}>Verify</Button>}
          <Menu position="bottom-end">
            <Menu.Target><Button variant="default" leftSection={<IconDownload size={17} />} rightSection={<IconChevronDown size={16} />}>Export</Button></Menu.Target>
            <Menu.Dropdown>
              <Menu.Label>{filtered ? "What the filter shows" : "The whole log"}</Menu.Label>
              <Menu.Item component="a" href={exportURL(filter, "jsonl", Date.now())} download>JSON lines</Menu.Item>
              <Menu.Item component="a" href={exportURL(filter, "csv", Date.now())} download>CSV</Menu.Item>
            </Menu.Dropdown>
          </Menu>
        </>
      }
    >
      <div className={table.bar}>
        <Select aria-label="Type" placeholder="Any type" data={options} value={filter.type || null} onChange={(type) => set({ type: type ?? "" })} searchable clearable w={{ base: "100%", xs: 210 }} maxDropdownHeight={320} />
        <Select aria-label="Outcome" placeholder="Any outcome" data={[{ value: "ok", label: "Good" }, { value: "denied", label: "Denied" }, { value: "failed", label: "Failed" }]} value={filter.outcome || null} onChange={(outcome) => set({ outcome: outcome ?? "" })} clearable w={{ base: "47%", xs: 150 }} />
        <Select aria-label="Time" data={spans.map(([value, label]) => ({ value, label }))} value={filter.span} onChange={(span) => set({ span: (span ?? "all") as Span })} allowDeselect={false} w={{ base: "47%", xs: 150 }} />
        <TextInput aria-label="ID of a person or thing" placeholder="About an ID: usr_…, edg_…, tgt_…" value={filter.about} onChange={(e) => set({ about: e.currentTarget.value.trim() })} w={{ base: "100%", xs: 260 }} maxLength={100} spellCheck={false} />
      </div>
      <DataTable
        label="Audit events" columns={columns} list={list} rowKey={(e) => String(e.seq)} open={setShown}
        compact={(e) => <span className={table.two}><span style={{ whiteSpace: "normal" }}>{sentence(e)}</span><small><Time at={e.time} /> {e.outcome !== "ok" && <OutcomeBadge outcome={e.outcome} />}</small></span>}
        empty={<Empty title={filtered ? "No event matches" : "No events yet"}>{filtered ? "Try another type or a longer time." : "What people and programs do is written here."}</Empty>}
      />
      <EventModal e={shown} close={() => setShown(undefined)} filter={set} />
      <Verify opened={verifying} close={() => setVerifying(false)} />
    </Page>
  );
}
