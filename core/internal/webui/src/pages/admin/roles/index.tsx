import { Button } from "@mantine/core";
import { IconPlus, IconUsersGroup } from "@tabler/icons-react";
import { useNavigate } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";
import { useList } from "~/ui/useList";
import { GroupFilter } from "../parts/GroupPicker";
import { useGroupFilter } from "../parts/groups";
import { useSearchText } from "../parts/SearchBox";
import classes from "../parts/Table.module.css";
import { RoleForm } from "./RoleForm";
import { permissions } from "./permissions";

type Role = Schemas["UserRoleView"];

const names = new Map(permissions);
const rights = (r: Role) => (r.builtin ? "every administrative right" : r.permissions?.length ? r.permissions.map((p) => names.get(p) ?? p).join(", ") : "none");

const columns: Column<Role>[] = [
  { key: "name", header: "Role", width: "minmax(150px, 1fr)", render: (r) => <span className={classes.two}><b>{r.name}</b>{r.comment && <small>{r.comment}</small>}</span> },
  { key: "rights", header: "Administrative rights", width: "minmax(200px, 2fr)", from: 700, render: rights },
];

export default function Roles() {
  const { can } = useSession();
  const go = useNavigate();
  const [text, box] = useSearchText("Find a role");
  const [adding, setAdding] = useState(false);
  const [group, setGroup] = useGroupFilter();
  const list = useList(["role", "list", text, group], (cursor, signal) => ask(api.GET("/roles", { params: { query: { search: text || undefined, group: group || undefined, cursor, limit: 200 } }, signal })));
  const open = (id: string) => void go({ href: `/admin/roles/${id}` });
  return (
    <Page title="Roles" fill hint="Grants open targets to roles; people are members of roles." actions={<>{box}<GroupFilter value={group} onChange={setGroup} />{can("users:manage") && <Button leftSection={<IconPlus size={17} />} onClick={() => setAdding(true)}>Add role</Button>}</>}>
      <DataTable
        label="Roles" columns={columns} list={list} rowKey={(r) => r.id} open={(r) => open(r.id)} rowHeight={54}
        compact={(r) => <span className={classes.two}><b>{r.name}</b><small>{r.comment || rights(r)}</small></span>}
        empty={text || group ? <Empty title="No role matches">Try fewer letters.</Empty> : <Empty icon={IconUsersGroup} title="No roles yet">Make one for each job people do here.</Empty>}
      />
      <RoleForm opened={adding} close={() => setAdding(false)} done={(r) => open(r.id)} />
    </Page>
  );
}
