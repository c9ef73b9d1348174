import { Button, SegmentedControl, Tabs, Text } from "@mantine/core";
import { IconBuildingFortress, IconPlus } from "@tabler/icons-react";
import { useNavigate } from "@tanstack/react-router";
import { useMemo, useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";
import { Sparkline } from "~/ui/Plot";
import { StateBadge } from "~/ui/StateBadge";
import { Ago, Time } from "~/ui/Time";
import { useList } from "~/ui/useList";
import { useSearchText } from "../admin/parts/SearchBox";
import { Enrol } from "./Enrol";
import { Feed } from "./Feed";
import classes from "./Fleet.module.css";
import { Tokens } from "./Tokens";
import { capacityText, type Edge, health, kindWord, kindWords, matches, rtt, worst } from "./edge";

export default function Fleet() {
  const { can } = useSession();
  const [enrolling, setEnrolling] = useState(false);
  const manage = can("edges:manage");
  return (
    <Page title="Fleet" fill hint="Edge nodes dial out to core; nothing is opened inbound for them." actions={manage && <Button leftSection={<IconPlus size={17} />} onClick={() => setEnrolling(true)}>Enrol a node</Button>}>
      <Tabs defaultValue="nodes" keepMounted={false} className={classes.tabs}>
        <Tabs.List>
          <Tabs.Tab value="nodes">Nodes</Tabs.Tab>
          <Tabs.Tab value="tokens">Enrolment tokens</Tabs.Tab>
          {can("audit:view") && <Tabs.Tab value="events">Events</Tabs.Tab>}
        </Tabs.List>
        <Tabs.Panel value="nodes" className={classes.panel}><Nodes enrol={manage ? () => setEnrolling(true) : undefined} /></Tabs.Panel>
        <Tabs.Panel value="tokens" className={classes.panel}><Tokens /></Tabs.Panel>
        {can("audit:view") && <Tabs.Panel value="events" className={classes.panel}><Feed /></Tabs.Panel>}
      </Tabs>
      <Enrol opened={enrolling} close={() => setEnrolling(false)} />
    </Page>
  );
}

const kinds = ["", "extender", "router", "carrier", "webproxy"] as const;

const columns: Column<Edge>[] = [
  { key: "name", header: "Node", width: "minmax(150px, 1.4fr)", render: (e) => <span className={classes.name}><b>{e.name}</b><small>{kindWord(e.kind)}{e.site ? ` in ${e.site}` : ""}</small></span> },
  { key: "health", header: "Health", width: "minmax(118px, 1fr)", render: (e) => <Health e={e} /> },
  { key: "rtt", header: "Round trip", width: "150px", from: 700, render: (e) => e.tunnel ? <span className={classes.spark}><span className="nums">{rtt(e.tunnel.rtt_ms)}</span>{(e.tunnel.history?.rtt_ms.length ?? 0) > 1 && <Sparkline values={e.tunnel.history?.rtt_ms ?? []} width={64} label={`Round-trip time of the last ${e.tunnel.history?.rtt_ms.length} reports`} />}</span> : "–" },
  { key: "streams", header: "Streams", width: "70px", from: 700, align: "end", render: (e) => <span className="nums">{e.tunnel?.streams ?? "–"}</span> },
  { key: "transport", header: "Tunnel", width: "minmax(150px, 1fr)", from: 700, render: (e) => e.tunnel ? <Tunnel e={e} /> : "–" },
  { key: "version", header: "Version", width: "76px", from: 1000, render: (e) => e.tunnel?.build ?? "–" },
  { key: "cert", header: "Certificate ends", width: "140px", from: 1250, render: (e) => <Time at={e.certificate_not_after} /> },
  { key: "seen", header: "Connected", width: "124px", from: 700, render: (e) => e.tunnel ? <Ago at={e.tunnel.connected_at} /> : e.last_seen ? <Text size="sm" c="dimmed" span>seen <Ago at={e.last_seen} /></Text> : "never" },
];

function Health({ e }: { e: Edge }) {
  const h = health(e);
  const warn = worst(e);
  return <span className={classes.name} title={warn}><StateBadge state={e.health} tone={warn && h.tone === "good" ? "warn" : h.tone} label={h.label} />{warn ? <small>{warn}</small> : capacityText(e) && <small>{capacityText(e)}</small>}</span>;
}

function Tunnel({ e }: { e: Edge }) {
  const t = e.tunnel;
  if (!t) return null;
  return <span className={classes.name}><span>{t.transport === "quic" ? "QUIC" : "WebSocket"}</span><small>{t.binding === "inner" ? "inner TLS: a proxy ends TLS" : "bound to core's TLS"}</small></span>;
}

function Nodes({ enrol }: { enrol?: () => void }) {
  const go = useNavigate();
  const [kind, setKind] = useState<string>("");
  const [text, box] = useSearchText("Find by name, site or label");
  const all = useList(["edge", "list", kind], (cursor, signal) => ask(api.GET("/edges", { params: { query: { kind: kind || undefined, cursor, limit: 200 } }, signal })));
  const list = useMemo(() => ({ ...all, rows: text ? all.rows.filter((e) => matches(e, text)) : all.rows }), [all, text]);
  return (
    <>
      <div className={classes.bar}>
        {box}
        <SegmentedControl aria-label="Kind" size="xs" value={kind} onChange={setKind} data={kinds.map((k) => ({ value: k, label: k ? kindWords(k) : "All" }))} />
      </div>
      <DataTable
        label="Edge nodes" columns={columns} list={list} rowKey={(e) => e.id} rowHeight={58} open={(e) => void go({ href: `/fleet/${e.id}` })}
        compact={(e) => <span className={classes.compact}><Health e={e} /><span className={classes.name}><b>{e.name}</b><small>{kindWord(e.kind)}{e.site ? ` in ${e.site}` : ""}{e.tunnel ? `, ${rtt(e.tunnel.rtt_ms)}, ${e.tunnel.streams} streams` : ""}</small></span></span>}
        empty={text || kind ? <Empty title="No node matches">Try fewer letters, or another kind.</Empty> : <Empty icon={IconBuildingFortress} title="No edge nodes yet" action={enrol && <Button onClick={enrol}>Enrol the first node</Button>}>An extender inside a private network makes its hosts reachable; it takes one command.</Empty>}
      />
    </>
  );
}
