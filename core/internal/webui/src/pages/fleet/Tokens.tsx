import { Button } from "@mantine/core";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { StateBadge } from "~/ui/StateBadge";
import { Ago } from "~/ui/Time";
import { useList } from "~/ui/useList";
import classes from "./Fleet.module.css";
import { kindWord } from "./edge";

type Token = Schemas["FleetTokenOut"];

const tones = { valid: "good", used_up: "off", expired: "off", revoked: "off" } as const;

export function Tokens() {
  const { can } = useSession();
  const [revoking, setRevoking] = useState<Token>();
  const list = useList(["token", "enrolment"], (cursor, signal) => ask(api.GET("/enrolment-tokens", { params: { query: { cursor, limit: 200 } }, signal })));
  const columns: Column<Token>[] = [
    { key: "for", header: "For", width: "minmax(150px, 1fr)", render: (t) => <span className={classes.name}><b>{kindWord(t.kind)}{t.site ? ` in ${t.site}` : ""}</b>{t.comment && <small>{t.comment}</small>}</span> },
    { key: "state", header: "State", width: "110px", render: (t) => <StateBadge state={t.state} tone={tones[t.state]} /> },
    { key: "uses", header: "Used", width: "80px", render: (t) => <span className="nums">{t.uses} of {t.max_uses}</span> },
    { key: "end", header: "Ends", width: "120px", from: 700, render: (t) => <Ago at={t.expires_at} /> },
    { key: "made", header: "Made", width: "120px", from: 1000, render: (t) => <Ago at={t.created_at} /> },
    { key: "id", header: "ID", width: "minmax(120px, 1fr)", from: 1000, render: (t) => <span className="mono">{t.id}</span> },
    { key: "do", header: "Actions", quiet: true, width: "90px", align: "end", render: (t) => can("edges:manage") && t.state === "valid" && <Button size="compact-xs" variant="default" onClick={() => setRevoking(t)}>Revoke</Button> },
  ];
  return (
    <>
      <DataTable
        label="Enrolment tokens" columns={columns} list={list} rowKey={(t) => t.id} rowHeight={56}
        empty={<Empty title="No enrolment tokens">A token lets a new node join. Make one with “Enrol a node”; its text is shown once.</Empty>}
      />
      <Confirm opened={revoking !== undefined} close={() => setRevoking(undefined)} title="Revoke this token?" action="Revoke" danger run={async () => { if (revoking) await ask(api.DELETE("/enrolment-tokens/{id}", { params: { path: { id: revoking.id } } })); list.again(); }}>
        Nobody can enrol with it any more. Nodes that did stay.
      </Confirm>
    </>
  );
}
