import { Button, Textarea, TextInput } from "@mantine/core";
import { IconPlus, IconSitemap } from "@tabler/icons-react";
import { useNavigate } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";
import { Ago } from "~/ui/Time";
import { useList } from "~/ui/useList";
import { FormModal } from "../parts/FormModal";
import classes from "../parts/Table.module.css";

type Group = Schemas["GroupView"];

const columns: Column<Group>[] = [
  { key: "name", header: "Group", width: "minmax(160px, 1fr)", render: (g) => <span className={classes.two}><b>{g.name}</b>{g.comment && <small>{g.comment}</small>}</span> },
  { key: "made", header: "Created", width: "140px", from: 700, render: (g) => (g.created_at ? <Ago at={g.created_at} /> : "built in") },
];

export default function Groups() {
  const { everywhere } = useSession();
  const go = useNavigate();
  const [adding, setAdding] = useState(false);
  const list = useList(["group", "list"], (cursor, signal) => ask(api.GET("/access-groups", { params: { query: { cursor, limit: 200 } }, signal })));
  const open = (id: string) => void go({ href: `/admin/groups/${id}` });
  return (
    <Page
      title="Access groups" fill hint="Each group of targets, sites, roles and secrets can have administrators of its own, who see nothing of the others."
      actions={everywhere("groups:manage") && <Button leftSection={<IconPlus size={17} />} onClick={() => setAdding(true)}>Add group</Button>}
    >
      <DataTable
        label="Access groups" columns={columns} list={list} rowKey={(g) => g.id} open={(g) => open(g.id)} rowHeight={54}
        compact={(g) => <span className={classes.two}><b>{g.name}</b><small>{g.comment}</small></span>}
        empty={<Empty icon={IconSitemap} title="No access groups">You administer none.</Empty>}
      />
      <GroupForm opened={adding} close={() => setAdding(false)} done={(g) => open(g.id)} />
    </Page>
  );
}

export function GroupForm({ opened, close, group, etag, done }: { opened: boolean; close: () => void; group?: Group; etag?: string; done?: (g: Group) => void }) {
  return (
    <FormModal
      opened={opened} close={close} title={group ? `Edit ${group.name}` : "Add an access group"} topics={["group"]} action={group ? "Save" : "Add"} done={done}
      initial={() => ({ name: group?.name ?? "", comment: group?.comment ?? "" })}
      save={(body) => group
        ? ask(api.PUT("/access-groups/{id}", { params: { path: { id: group.id }, header: { "If-Match": etag } }, body }))
        : ask(api.POST("/access-groups", { body }))}
    >
      {({ v, set, at }) => (
        <>
          <TextInput label="Name" description={group?.builtin ? "The default group keeps its name." : "a-z 0-9 . _ -"} value={v.name} onChange={(e) => set({ name: e.currentTarget.value })} error={at("name")} required disabled={group?.builtin} data-autofocus spellCheck={false} />
          <Textarea label="Comment" value={v.comment} onChange={(e) => set({ comment: e.currentTarget.value })} error={at("comment")} autosize minRows={2} />
        </>
      )}
    </FormModal>
  );
}
