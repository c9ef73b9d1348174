import { Button, Group, TextInput } from "@mantine/core";
import { IconPlus, IconWorld } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";
import { StateBadge } from "~/ui/StateBadge";
import { Ago } from "~/ui/Time";
import { useList } from "~/ui/useList";
import { Danger } from "../parts/Danger";
import { FormModal } from "../parts/FormModal";
import { GroupFilter, GroupPicker } from "../parts/GroupPicker";
import { useGroupFilter } from "../parts/groups";
import classes from "../parts/Table.module.css";

type Site = Schemas["TargetSiteView"];

export default function Sites() {
  const { can, within } = useSession();
  const [form, setForm] = useState<{ site?: Site }>();
  const [group, setGroup] = useGroupFilter();
  const [deleting, setDeleting] = useState<Site>();
  const list = useList(["site", "list", group], (cursor, signal) => ask(api.GET("/sites", { params: { query: { group: group || undefined, cursor, limit: 200 } }, signal })));
  const edges = useQuery({ queryKey: ["edge", "list", "extender"], queryFn: ({ signal }) => ask(api.GET("/edges", { params: { query: { kind: "extender", limit: 500 } }, signal })), enabled: can("edges:view") });
  const manage = can("targets:manage");
  const nodes = (name: string) => (edges.data?.items ?? []).filter((e) => e.site === name && e.health !== "revoked");
  const reach = (s: Site) => {
    if (!edges.data) return "–";
    const all = nodes(s.name);
    const up = all.filter((e) => e.health === "online").length;
    if (all.length === 0) return <StateBadge state="none" tone="off" label="No extender" />;
    return <StateBadge state="x" tone={up === 0 ? "bad" : up < all.length ? "warn" : "good"} label={`${up} of ${all.length} extenders online`} />;
  };
  const columns: Column<Site>[] = [
    { key: "name", header: "Site", width: "minmax(150px, 1fr)", render: (s) => <span className={classes.two}><b>{s.name}</b>{s.comment && <small>{s.comment}</small>}</span> },
    { key: "reach", header: "Reachable by", width: "minmax(170px, 1fr)", render: reach },
    { key: "made", header: "Created", width: "120px", from: 700, render: (s) => <Ago at={s.created_at} /> },
    { key: "do", header: "Actions", quiet: true, width: "150px", from: 700, align: "end", render: (s) => within("targets:manage", s.group) && <Group gap={6} justify="flex-end" wrap="nowrap"><Button size="compact-xs" variant="default" onClick={() => setForm({ site: s })}>Edit</Button><Button size="compact-xs" variant="default" onClick={() => setDeleting(s)}>Delete</Button></Group> },
  ];
  const site = form?.site;
  return (
    <Page title="Sites" fill hint="A site is an address space behind its extenders: 10.0.0.5 may exist in every one." actions={<><GroupFilter value={group} onChange={setGroup} />{manage && <Button leftSection={<IconPlus size={17} />} onClick={() => setForm({})}>Add site</Button>}</>}>
      <DataTable label="Sites" columns={columns} list={list} rowKey={(s) => s.id} rowHeight={54} empty={<Empty icon={IconWorld} title="No sites yet">Enrolling an extender makes one; targets without a site are dialled by core itself.</Empty>} />
      <FormModal
        opened={form !== undefined} close={() => setForm(undefined)} title={site ? `Edit ${site.name}` : "Add a site"} topics={["site"]} action={site ? "Save" : "Add"}
        initial={() => ({ name: site?.name ?? "", comment: site?.comment ?? "", group: site?.group ?? "" })}
        save={(v) => site
          ? ask(api.PUT("/sites/{name}", { params: { path: { name: site.name }, header: { "If-Match": `"${site.version}"` } }, body: { comment: v.comment, group: v.group || undefined } }))
          : ask(api.POST("/sites", { body: { name: v.name, comment: v.comment || undefined, group: v.group || undefined } }))}
      >
        {({ v, set, at }) => (
          <>
            <TextInput label="Name" description="Stands before addresses, as in vpc-a/10.0.0.5:22. It cannot be changed later." value={v.name} onChange={(e) => set({ name: e.currentTarget.value })} error={at("name")} disabled={!!site} required data-autofocus={!site || undefined} spellCheck={false} />
            <TextInput label="Comment" value={v.comment} onChange={(e) => set({ comment: e.currentTarget.value })} error={at("comment")} />
            <GroupPicker permission="targets:manage" value={v.group} onChange={(group) => set({ group })} error={at("group")} description={site ? "Its targets stay in theirs." : "Targets made in the site belong to it, too."} />
          </>
        )}
      </FormModal>
      <Danger opened={deleting !== undefined} close={() => setDeleting(undefined)} title="Delete this site?" name={deleting?.name ?? ""} action="Delete" topics={["site"]} run={async () => { if (deleting) await ask(api.DELETE("/sites/{name}", { params: { path: { name: deleting.name }, header: { "If-Match": `"${deleting.version}"` } } })); }}>
        Only a site nothing uses can be deleted.
      </Danger>
    </Page>
  );
}
