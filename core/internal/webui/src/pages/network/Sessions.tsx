import { Button, Switch, Text } from "@mantine/core";
import { IconNetwork } from "@tabler/icons-react";
import { useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { Bytes } from "~/ui/Bytes";
import { Confirm } from "~/ui/Confirm";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { StateBadge } from "~/ui/StateBadge";
import { Ago, Lasting } from "~/ui/Time";
import { useList } from "~/ui/useList";
import classes from "./Network.module.css";
import { ending, type Session } from "./network";

// Sessions is who is where, with bytes each way, and the way to end it.
export function Sessions() {
  const { can } = useSession();
  const [all, setAll] = useState(false);
  const [closing, setClosing] = useState<Session>();
  const list = useList(["network", "all", all], (cursor, signal) => ask(api.GET("/network-sessions", { params: { query: { all, cursor, limit: 200 } }, signal })));
  const columns: Column<Session>[] = [
    { key: "user", header: "User", width: "minmax(120px, 1fr)", render: (s) => <span className={classes.name}><b>{s.user_name}</b><small className="mono">{s.client_ip}</small></span> },
    { key: "target", header: "Target", width: "minmax(140px, 1.3fr)", render: (s) => <span className={classes.name} title={s.destinations?.join("\n")}><span>{s.target_name}</span><small>{s.destinations?.[0]}</small></span> },
    { key: "state", header: "State", width: "minmax(130px, 1fr)", render: (s) => <State s={s} /> },
    { key: "time", header: "Lasted", width: "110px", from: 700, render: (s) => <Lasting from={s.ended_at ? undefined : s.opened_at} seconds={s.ended_at ? (Date.parse(s.ended_at) - Date.parse(s.opened_at)) / 1000 : undefined} /> },
    { key: "out", header: "Out", width: "90px", from: 700, align: "end", render: (s) => <Bytes n={s.bytes_out} /> },
    { key: "in", header: "In", width: "90px", from: 700, align: "end", render: (s) => <Bytes n={s.bytes_in} /> },
    { key: "routers", header: "Routers", width: "minmax(110px, 0.8fr)", from: 1000, render: (s) => s.routers?.map((r) => r.name || r.id).join(", ") || "–" },
    { key: "opened", header: "Opened", width: "120px", from: 1000, render: (s) => <Ago at={s.opened_at} /> },
    { key: "close", header: "End", quiet: true, width: "84px", align: "end", render: (s) => can("connections:manage") && (s.state === "open" || s.state === "opening") && <Button size="compact-sm" variant="default" onClick={() => setClosing(s)}>End</Button> },
  ];
  return (
    <>
      <Switch label="Also sessions that have ended" checked={all} onChange={(e) => setAll(e.currentTarget.checked)} />
      <DataTable
        label="Network sessions" columns={columns} list={list} rowKey={(s) => s.id} rowHeight={58}
        compact={(s) => <span className={classes.compact}><span className={classes.name}><b>{s.user_name} on {s.target_name}</b><small className="mono">{s.client_ip}</small></span><State s={s} /></span>}
        empty={<Empty icon={IconNetwork} title={all ? "No network session yet" : "No network session is open"} />}
      />
      <Confirm opened={closing !== undefined} close={() => setClosing(undefined)} title="End this session?" action="End session" danger run={() => ask(api.DELETE("/network-sessions/{id}", { params: { path: { id: closing?.id ?? "" } } }))}>
        {closing?.user_name} loses {closing?.target_name} at once; open flows are cut.
      </Confirm>
    </>
  );
}

function State({ s }: { s: Session }) {
  const stuck = s.routers?.filter((r) => r.state === "removing").map((r) => r.name).join(", ");
  return (
    <span className={classes.name}>
      <StateBadge state={s.state} tone={s.state === "ending" ? "warn" : undefined} />
      {s.state === "ending" && stuck && <Text size="xs" c="dimmed" span>{stuck} has not confirmed</Text>}
      {s.state === "ended" && <small title={s.end_text}>{ending(s)}</small>}
    </span>
  );
}
