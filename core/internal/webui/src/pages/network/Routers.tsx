import { Button, Group, Modal, Stack, Text, Textarea } from "@mantine/core";
import { IconRouter } from "@tabler/icons-react";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { ErrorBox } from "~/ui/ErrorBox";
import { StateBadge } from "~/ui/StateBadge";
import { Ago } from "~/ui/Time";
import { useList } from "~/ui/useList";
import classes from "./Network.module.css";
import { type Router, some } from "./network";

// Routers are the nodes that enforce sessions, with the client addresses whose
// traffic they forward.
export function Routers() {
  const { can } = useSession();
  const [editing, setEditing] = useState<Router>();
  const list = useList(["router", "list"], (_, signal) => ask(api.GET("/routers", { signal })));
  const columns: Column<Router>[] = [
    { key: "name", header: "Router", width: "minmax(140px, 1fr)", render: (r) => <span className={classes.name}><b>{r.name}</b><small>{r.type || "type not known yet"}{r.type && !r.leased ? ", rules do not end by themselves" : ""}</small></span> },
    { key: "health", header: "Health", width: "minmax(150px, 1fr)", render: (r) => <Health r={r} /> },
    { key: "pools", header: "Client address pools", width: "minmax(150px, 1.5fr)", render: (r) => <Pools r={r} /> },
    { key: "sources", header: "Own addresses", width: "minmax(120px, 1fr)", from: 1000, render: (r) => <span className="mono">{r.sources?.join(", ") || "–"}</span> },
    { key: "sessions", header: "Sessions", width: "86px", from: 700, align: "end", render: (r) => <span className="nums">{r.sessions}</span> },
    { key: "lease", header: "Rules hold until", width: "130px", from: 1000, render: (r) => r.lease_until ? <Ago at={r.lease_until} /> : "–" },
    { key: "edit", header: "Change", quiet: true, width: "92px", align: "end", render: (r) => can("edges:manage") && <Button size="compact-sm" variant="default" onClick={() => setEditing(r)}>Change</Button> },
  ];
  return (
    <>
      <DataTable
        label="Routers" columns={columns} list={list} rowKey={(r) => r.id} rowHeight={60}
        compact={(r) => <span className={classes.compact}><span className={classes.name}><b>{r.name}</b><Pools r={r} /></span><span>{can("edges:manage") ? <Button size="compact-sm" variant="default" onClick={() => setEditing(r)}>Change</Button> : <Health r={r} />}</span></span>}
        empty={<Empty icon={IconRouter} title="No routers yet">Enrol a node of kind router under Fleet, then give it the client addresses whose traffic passes it.</Empty>}
      />
      <Modal opened={editing !== undefined} onClose={() => setEditing(undefined)} title={`Router ${editing?.name ?? ""}`}>
        {editing && <Form key={editing.id} r={editing} close={() => setEditing(undefined)} />}
      </Modal>
    </>
  );
}

function Health({ r }: { r: Router }) {
  const warn = r.health === "online" && (!r.synced || r.ending > 0);
  const why = r.ending > 0 ? `${some(r.ending, "removal")} not confirmed` : r.problem || (warn ? "agreeing on rules" : "");
  return <span className={classes.name} title={why}><StateBadge state={r.health} tone={warn ? "warn" : undefined} />{why && <small>{why}</small>}</span>;
}

function Pools({ r }: { r: Router }) {
  const text = r.pools?.join(", ");
  return text ? <span className="mono" title={text}>{text}</span> : <Text size="sm" c="dimmed" span>None: it serves nobody</Text>;
}

function Form({ r, close }: { r: Router; close: () => void }) {
  const client = useQueryClient();
  const [pools, setPools] = useState(r.pools?.join("\n") ?? "");
  const [sources, setSources] = useState(r.sources?.join("\n") ?? "");
  const lines = (text: string) => text.split(/[\s,]+/).filter(Boolean);
  const save = useMutation({
    mutationFn: () => ask(api.PATCH("/routers/{id}", { params: { path: { id: r.id }, header: { "If-Match": `"${r.version}"` } }, body: { pools: lines(pools), sources: lines(sources) } })),
    onSuccess: () => {
      void client.invalidateQueries({ queryKey: ["router"] });
      close();
    },
  });
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        save.mutate();
      }}
    >
      <Stack>
        <Textarea label="Client address pools" description="Networks whose traffic passes this router, one per line. Sessions of addresses in no pool are refused; open ones end." value={pools} onChange={(e) => setPools(e.currentTarget.value)} autosize minRows={3} placeholder="10.8.0.0/24" className="mono" data-autofocus />
        <Textarea label="Own addresses" description="How core sees packets this router translates; only for targets behind a site. Empty: the address its tunnel comes from." value={sources} onChange={(e) => setSources(e.currentTarget.value)} autosize minRows={2} />
        {save.error && <ErrorBox error={save.error} />}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={close}>Cancel</Button>
          <Button type="submit" loading={save.isPending}>Save</Button>
        </Group>
      </Stack>
    </form>
  );
}
