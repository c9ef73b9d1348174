import { Alert, Anchor, Button, Group, Menu, PasswordInput, Skeleton, Text, TextInput } from "@mantine/core";
import { IconChevronDown } from "@tabler/icons-react";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate, useParams } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, askFull, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { CopyText } from "~/ui/CopyText";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";
import { Ago, Time } from "~/ui/Time";
import { Danger } from "../parts/Danger";
import { FormModal } from "../parts/FormModal";
import { Facts, Panel } from "../parts/Panel";
import classes from "../parts/Table.module.css";
import { Credentials } from "./Credentials";
import { UserState } from "./index";
import { Memberships } from "./Memberships";
import { Trail } from "../audit/Trail";

export default function UserPage() {
  const { id = "" } = useParams({ strict: false }) as { id?: string };
  const { can, everywhere } = useSession();
  const q = useQuery({ queryKey: ["user", "one", id], queryFn: ({ signal }) => askFull(api.GET("/users/{id}", { params: { path: { id } }, signal })) });
  const back = <Anchor component={Link} to="/admin/users">Users</Anchor>;
  if (q.error && !q.data) return <Page title="User" back={back}><ErrorBox error={q.error} again={() => void q.refetch()} /></Page>;
  if (!q.data) return <Page title="User" back={back}><Skeleton height={140} radius={12} /><Skeleton height={220} radius={12} /></Page>;
  const u = q.data.data;
  return (
    <Page title={u.name} back={back} hint={<Group gap="sm"><UserState u={u} />{u.display_name}</Group>} actions={everywhere("users:manage") && !u.erased_at && <Actions u={u} etag={q.data.etag} />}>
      {u.locked && <Alert variant="light" color="red" p="sm">The account is locked: nothing of it works, and what it had open was ended.</Alert>}
      <Panel>
        <Facts rows={[
          ["ID", <CopyText key="i" text={u.id} />], ["Mail", u.email || "–"], ["Password", u.has_password ? "set" : "none"], ["Second factor", u.totp ? "set up" : "none"],
          ["Last sign-in", u.last_login ? <Ago key="l" at={u.last_login} /> : "never"], ["Created", <Time key="c" at={u.created_at} />],
          u.password_paused_until ? ["Password sign-ins wait until", <Time key="p" at={u.password_paused_until} />] : false,
        ]} />
      </Panel>
      <Memberships user={u} />
      <div className={classes.grid}><Credentials user={u} /></div>
      {can("audit:view") && <Panel title="What happened" tight><Trail about={u.id} /></Panel>}
    </Page>
  );
}

type User = Schemas["UserUserView"];

function Actions({ u, etag }: { u: User; etag: string }) {
  const [open, setOpen] = useState<"edit" | "password" | "lock" | "erase" | "out">();
  const { me } = useSession();
  const client = useQueryClient();
  const go = useNavigate();
  const again = () => client.invalidateQueries({ queryKey: ["user"] });
  const path = { id: u.id };
  const header = { "If-Match": etag };
  const change = useMutation({ mutationFn: (body: Schemas["ChangeUserChangeUserInputBody"]) => ask(api.PATCH("/users/{id}", { params: { path, header }, body })), onSuccess: again });
  const close = () => setOpen(undefined);
  const own = u.id === me.user.id;
  return (
    <>
      {change.error && <Text size="sm" c="var(--bad)" role="alert">{change.error.message}</Text>}
      <Button variant="default" onClick={() => setOpen("edit")}>Edit</Button>
      <Menu position="bottom-end">
        <Menu.Target><Button variant="default" rightSection={<IconChevronDown size={16} />} loading={change.isPending}>More</Button></Menu.Target>
        <Menu.Dropdown>
          <Menu.Item onClick={() => setOpen("password")}>Set a password…</Menu.Item>
          {u.password_paused_until && <Menu.Item onClick={() => change.mutate({ unpause: true })}>End the password pause</Menu.Item>}
          <Menu.Item onClick={() => setOpen("out")}>Sign out everywhere…</Menu.Item>
          {u.disabled ? <Menu.Item onClick={() => change.mutate({ disabled: false })}>Enable</Menu.Item> : <Menu.Item disabled={own} onClick={() => change.mutate({ disabled: true })}>Disable</Menu.Item>}
          {u.locked ? <Menu.Item onClick={() => change.mutate({ locked: false })}>Unlock</Menu.Item> : <Menu.Item color="red" disabled={own} onClick={() => setOpen("lock")}>Lock…</Menu.Item>}
          <Menu.Item color="red" disabled={own} onClick={() => setOpen("erase")}>Erase…</Menu.Item>
        </Menu.Dropdown>
      </Menu>
      <FormModal
        opened={open === "edit"} close={close} title={`Edit ${u.name}`} topics={["user"]} initial={() => ({ name: u.name, display_name: u.display_name ?? "", email: u.email ?? "" })}
        save={(v) => ask(api.PATCH("/users/{id}", { params: { path, header }, body: v }))}
      >
        {({ v, set, at }) => (
          <>
            <TextInput label="Name" value={v.name} onChange={(e) => set({ name: e.currentTarget.value })} error={at("name")} required data-autofocus />
            <TextInput label="Full name" value={v.display_name} onChange={(e) => set({ display_name: e.currentTarget.value })} error={at("display_name")} />
            <TextInput label="Mail address" type="email" value={v.email} onChange={(e) => set({ email: e.currentTarget.value })} error={at("email")} />
          </>
        )}
      </FormModal>
      <FormModal
        opened={open === "password"} close={close} title={`Set a password for ${u.name}`} topics={["user"]} action="Set password" saved="The password was set."
        initial={() => ({ password: "", current: "" })} save={(v) => ask(api.PUT("/users/{id}/password", { params: { path }, body: { password: v.password, current: v.current || undefined } }))}
      >
        {({ v, set, at }) => (
          <>
            {own && <PasswordInput label="Present password" autoComplete="current-password" value={v.current} onChange={(e) => set({ current: e.currentTarget.value })} error={at("current")} />}
            <PasswordInput label="New password" description="Tell it by another way than mail. The user can change it under My account." autoComplete="new-password" value={v.password} onChange={(e) => set({ password: e.currentTarget.value })} error={at("password")} required data-autofocus />
          </>
        )}
      </FormModal>
      <Confirm opened={open === "lock"} close={close} title={`Lock ${u.name}?`} action="Lock" danger run={() => change.mutateAsync({ locked: true })}>
        Everything the account has open ends at once: connections, sessions, tokens. Nothing of it works until it is unlocked.
      </Confirm>
      <Confirm opened={open === "out"} close={close} title={`Sign ${u.name} out everywhere?`} action="Sign out" danger run={async () => { await ask(api.DELETE("/users/{id}/sessions", { params: { path } })); await again(); }}>
        All sessions of the console and the command line end, and the connections opened with them.
      </Confirm>
      <Danger opened={open === "erase"} close={close} title="Erase this user?" name={u.name} action="Erase" topics={["user"]} run={() => ask(api.POST("/users/{id}/erase", { params: { path, header } }))} done={() => void go({ href: "/admin/users" })}>
        Everything that names or authenticates the person is removed for good. Audit events stay, without the name.
      </Danger>
    </>
  );
}
