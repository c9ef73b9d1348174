import { Badge, Button, Group } from "@mantine/core";
import { IconNetwork } from "@tabler/icons-react";
import { useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { StateBadge } from "~/ui/StateBadge";
import { Ago } from "~/ui/Time";
import { useList } from "~/ui/useList";
import { Editor } from "./Editor";
import classes from "./Network.module.css";
import { line, type Target } from "./network";

const columns: Column<Target>[] = [
  { key: "name", header: "Target", width: "minmax(150px, 1fr)", render: (t) => <span className={classes.name}><b>{t.name}</b><small>{t.site ? `through site ${t.site}` : t.comment}</small></span> },
  { key: "what", header: "Opens", width: "minmax(170px, 1.8fr)", render: (t) => <Opens t={t} /> },
  { key: "how", header: "How", width: "minmax(120px, 0.8fr)", from: 700, render: (t) => <How t={t} /> },
  { key: "tags", header: "Tags", width: "minmax(100px, 0.8fr)", from: 1000, render: (t) => t.tags.join(", ") || "–" },
  { key: "changed", header: "Changed", width: "120px", from: 1000, render: (t) => <Ago at={t.updated_at} /> },
];

function Opens({ t }: { t: Target }) {
  const first = t.network?.destinations[0];
  const more = (t.destinations_total ?? 1) - 1;
  return <span className={classes.name} title={t.network?.destinations.map(line).join("\n")}><span className="mono">{first ? line(first) : "–"}</span>{more > 0 && <small>and {more} more</small>}</span>;
}

function How({ t }: { t: Target }) {
  if (t.disabled) return <StateBadge state="disabled" />;
  return (
    <Group gap={4}>
      {t.network?.exclusive && <Badge size="sm" variant="light" color="gray">Exclusive</Badge>}
      {t.network?.snat && <Badge size="sm" variant="light" color="gray">SNAT</Badge>}
      {t.network?.provider && <Badge size="sm" variant="light" color="gray">{t.network.provider}</Badge>}
    </Group>
  );
}

// Definitions are the network targets as administrators see them.
export function Definitions({ make }: { make: () => void }) {
  const { can } = useSession();
  const [editing, setEditing] = useState<string>();
  const list = useList(["target", "network"], (cursor, signal) => ask(api.GET("/targets", { params: { query: { kind: "network", cursor, limit: 200 } }, signal })));
  return (
    <>
      <DataTable
        label="Network targets" columns={columns} list={list} rowKey={(t) => t.id} rowHeight={58} open={(t) => setEditing(t.id)}
        compact={(t) => <span className={classes.compact}><span className={classes.name}><b>{t.name}</b><Opens t={t} /></span><How t={t} /></span>}
        empty={<Empty icon={IconNetwork} title="No network targets yet" action={can("targets:manage") && <Button onClick={make}>Make the first one</Button>}>A network target is a set of addresses, protocols and ports that a role may open.</Empty>}
      />
      <Editor opened={editing !== undefined} id={editing} close={() => setEditing(undefined)} />
    </>
  );
}
