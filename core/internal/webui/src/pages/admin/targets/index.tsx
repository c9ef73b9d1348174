import { Button, Select, TextInput } from "@mantine/core";
import { IconPlus, IconServer2, IconUpload, IconWorldPlus } from "@tabler/icons-react";
import { Link, useNavigate } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";
import { StateBadge } from "~/ui/StateBadge";
import { useList } from "~/ui/useList";
import { GroupFilter } from "../parts/GroupPicker";
import { useGroupFilter } from "../parts/groups";
import { Picker } from "../parts/Picker";
import { useSearchText } from "../parts/SearchBox";
import classes from "../parts/Table.module.css";
import { Import } from "./Import";
import { TargetForm } from "./TargetForm";

export type Target = Schemas["TargetView"];

const columns: Column<Target>[] = [
  { key: "name", header: "Target", width: "minmax(160px, 1.3fr)", render: (t) => <span className={classes.two}><b>{t.name}</b>{t.comment && <small>{t.comment}</small>}</span> },
  { key: "address", header: "Address", width: "minmax(180px, 1.3fr)", render: (t) => <span className="mono">{t.kind === "network" ? "network" : t.address}</span> },
  { key: "kind", header: "Kind", width: "80px", from: 700, render: (t) => t.kind.toUpperCase() },
  { key: "tags", header: "Tags", width: "minmax(120px, 0.9fr)", from: 700, render: (t) => t.tags.join(", ") || "–" },
  { key: "state", header: "State", width: "100px", from: 700, render: (t) => <StateBadge state={t.disabled ? "disabled" : "active"} label={t.disabled ? "Disabled" : "In use"} /> },
];

export default function Targets() {
  const { can } = useSession();
  const go = useNavigate();
  const manage = can("targets:manage");
  const [text, box] = useSearchText("Find by name or address");
  const [site, setSite] = useState("");
  const [kind, setKind] = useState<string>("");
  const [group, setGroup] = useGroupFilter();
  const [tag, setTag] = useState("");
  const [open, setOpen] = useState<"add" | "import">();
  const filter = { search: text || undefined, site: site || undefined, kind: (kind || undefined) as "ssh" | undefined, tag: tag || undefined, group: group || undefined };
  const list = useList(["target", "list", filter], (cursor, signal) => ask(api.GET("/targets", { params: { query: { ...filter, cursor, limit: 200 } }, signal })));
  const close = () => setOpen(undefined);
  const filtered = text || site || kind || tag || group;
  return (
    <Page title="Targets" fill actions={manage && <><Button variant="default" leftSection={<IconUpload size={17} />} onClick={() => setOpen("import")}>Import</Button><Button variant="default" leftSection={<IconWorldPlus size={17} />} renderRoot={(p) => <Link {...p} to="/admin/web-target" />}>Add web target</Button><Button leftSection={<IconPlus size={17} />} onClick={() => setOpen("add")}>Add target</Button></>}>
      <div className={classes.bar}>
        {box}
        <Select aria-label="Kind" placeholder="Any kind" data={[{ value: "ssh", label: "SSH" }, { value: "tcp", label: "TCP" }, { value: "web", label: "Web" }, { value: "network", label: "Network" }]} value={kind || null} onChange={(k) => setKind(k ?? "")} clearable w={130} />
        <Picker of="site" label="" placeholder="Any site" value={site} onChange={setSite} clearable />
        <TextInput aria-label="Tag" placeholder="Tag: env=prod" value={tag} onChange={(e) => setTag(e.currentTarget.value.trim())} w={160} spellCheck={false} />
        <GroupFilter value={group} onChange={setGroup} />
      </div>
      <DataTable
        label="Targets" columns={columns} list={list} rowKey={(t) => t.id} rowHeight={54} open={(t) => void go({ href: `/admin/targets/${t.id}` })}
        compact={(t) => <span className={classes.compact}><span className={classes.two}><b>{t.name}</b><small className="mono">{t.address}</small></span>{t.disabled && <StateBadge state="disabled" />}</span>}
        empty={filtered ? <Empty title="No target matches">Try fewer letters, or another site.</Empty> : <Empty icon={IconServer2} title="No targets yet" action={manage && <Button onClick={() => setOpen("add")}>Add the first target</Button>}>A target is a host, a service or a network people work on. Many at once come by import.</Empty>}
      />
      <TargetForm opened={open === "add"} close={close} done={(t) => void go({ href: `/admin/targets/${t.id}` })} />
      <Import opened={open === "import"} close={close} />
    </Page>
  );
}
