import { Button, PasswordInput, TextInput } from "@mantine/core";
import { IconPlus, IconUsers } from "@tabler/icons-react";
import { useNavigate } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";
import { StateBadge } from "~/ui/StateBadge";
import { Ago } from "~/ui/Time";
import { useList } from "~/ui/useList";
import { FormModal } from "../parts/FormModal";
import { useSearchText } from "../parts/SearchBox";
import classes from "../parts/Table.module.css";

type User = Schemas["UserUserView"];

export function UserState({ u }: { u: User }) {
  if (u.erased_at) return <StateBadge state="erased" tone="off" />;
  if (u.disabled) return <StateBadge state="disabled" tone="off" />;
  if (u.locked) return <StateBadge state="locked" tone="bad" />;
  if (u.password_paused_until && Date.parse(u.password_paused_until) > Date.now()) return <StateBadge state="paused" tone="warn" label="Password paused" />;
  return <StateBadge state="active" />;
}

const columns: Column<User>[] = [
  { key: "name", header: "User", width: "minmax(160px, 1.3fr)", render: (u) => <span className={classes.two}><b>{u.name}</b>{u.display_name && <small>{u.display_name}</small>}</span> },
  { key: "state", header: "State", width: "140px", render: (u) => <UserState u={u} /> },
  { key: "mail", header: "Mail", width: "minmax(150px, 1fr)", from: 700, render: (u) => u.email || "–" },
  { key: "totp", header: "Second factor", width: "120px", from: 700, render: (u) => (u.totp ? <StateBadge state="on" tone="good" label="Set up" /> : <StateBadge state="none" tone="off" label="None" />) },
  { key: "login", header: "Last sign-in", width: "130px", from: 700, render: (u) => (u.last_login ? <Ago at={u.last_login} /> : "never") },
  { key: "made", header: "Created", width: "120px", from: 1000, render: (u) => <Ago at={u.created_at} /> },
];

export default function Users() {
  const { everywhere } = useSession();
  const go = useNavigate();
  const [text, box] = useSearchText("Find by name or mail address");
  const [adding, setAdding] = useState(false);
  const list = useList(["user", "list", text], (cursor, signal) => ask(api.GET("/users", { params: { query: { search: text || undefined, cursor, limit: 200 } }, signal })));
  const open = (id: string) => void go({ href: `/admin/users/${id}` });
  return (
    <Page title="Users" fill actions={<>{box}{everywhere("users:manage") && <Button leftSection={<IconPlus size={17} />} onClick={() => setAdding(true)}>Add user</Button>}</>}>
      <DataTable
        label="Users" columns={columns} list={list} rowKey={(u) => u.id} open={(u) => open(u.id)} rowHeight={54}
        compact={(u) => <span className={classes.compact}><span className={classes.two}><b>{u.name}</b><small>{u.display_name || u.email}</small></span><UserState u={u} /></span>}
        empty={text ? <Empty title="Nobody matches">Try fewer letters.</Empty> : <Empty icon={IconUsers} title="No users yet">Add the people who will work here; roles then say what they may do.</Empty>}
      />
      <FormModal
        opened={adding} close={() => setAdding(false)} title="Add a user" topics={["user"]} action="Add" initial={() => ({ name: "", display_name: "", email: "", password: "" })}
        save={(v) => ask(api.POST("/users", { body: { name: v.name, display_name: v.display_name || undefined, email: v.email || undefined, password: v.password || undefined } }))}
        done={(u) => open(u.id)} valid={(v) => v.name.trim() !== ""}
      >
        {({ v, set, at }) => (
          <>
            <TextInput label="Name" description="For signing in; it cannot hold spaces." value={v.name} onChange={(e) => set({ name: e.currentTarget.value })} error={at("name")} required data-autofocus spellCheck={false} />
            <TextInput label="Full name" value={v.display_name} onChange={(e) => set({ display_name: e.currentTarget.value })} error={at("display_name")} />
            <TextInput label="Mail address" type="email" value={v.email} onChange={(e) => set({ email: e.currentTarget.value })} error={at("email")} />
            <PasswordInput label="First password" description="Without one, the user signs in by other means only." autoComplete="new-password" value={v.password} onChange={(e) => set({ password: e.currentTarget.value })} error={at("password")} />
          </>
        )}
      </FormModal>
    </Page>
  );
}
