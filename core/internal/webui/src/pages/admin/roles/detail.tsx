import { Alert, Anchor, Badge, Button, Group, Skeleton, Text, VisuallyHidden } from "@mantine/core";
import { IconUserPlus } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link, useNavigate, useParams } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, askFull, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";
import { useList } from "~/ui/useList";
import { Grants } from "../targets/Grants";
import { Danger } from "../parts/Danger";
import { Panel } from "../parts/Panel";
import classes from "../parts/Table.module.css";
import { windowText } from "../parts/window";
import { MemberForm } from "./MemberForm";
import { GroupName } from "../parts/GroupPicker";
import { useGroups } from "../parts/groups";
import { permissions } from "./permissions";
import { RoleForm } from "./RoleForm";

type Member = Schemas["UserMemberView"];

const names = new Map(permissions);

export default function RolePage() {
  const { id = "" } = useParams({ strict: false }) as { id?: string };
  const { can, within } = useSession();
  const { several, nameOf } = useGroups();
  const go = useNavigate();
  const [open, setOpen] = useState<"edit" | "delete">();
  const q = useQuery({ queryKey: ["role", "one", id], queryFn: ({ signal }) => askFull(api.GET("/roles/{id}", { params: { path: { id } }, signal })) });
  const back = <Anchor component={Link} to="/admin/roles">Roles</Anchor>;
  if (q.error && !q.data) return <Page title="Role" back={back}><ErrorBox error={q.error} again={() => void q.refetch()} /></Page>;
  if (!q.data) return <Page title="Role" back={back}><Skeleton height={140} radius={12} /><Skeleton height={220} radius={12} /></Page>;
  const r = q.data.data;
  const close = () => setOpen(undefined);
  return (
    <Page
      title={r.name} back={back} hint={several ? <>{r.comment && `${r.comment} · `}Access group <GroupName id={r.group} /></> : r.comment}
      actions={within("users:manage", r.group) && !r.builtin && <><Button variant="default" onClick={() => setOpen("edit")}>Edit</Button><Button variant="default" color="red" onClick={() => setOpen("delete")}>Delete</Button></>}
    >
      {r.builtin && <Alert variant="light" color="gray" p="sm">Built in: it holds every administrative right and cannot be changed.</Alert>}
      {!r.builtin && (
        <Panel title="Administrative rights">
          {r.permissions?.length ? <Group gap={6}>{r.permissions.map((p) => <Badge key={p} variant="light" tt="none" fw={500}>{names.get(p) ?? p}</Badge>)}</Group> : <Text size="sm" c="dimmed">None.</Text>}
          {r.limited_to?.length ? <Text size="sm" mt="xs">Only in {r.limited_to.map(nameOf).join(", ")}.</Text> : null}
        </Panel>
      )}
      <Members role={r} manage={within("users:manage", r.group)} />
      {can("targets:view") && <Grants role={{ id: r.id, name: r.name }} />}
      <RoleForm opened={open === "edit"} close={close} role={r} etag={q.data.etag} />
      <Danger opened={open === "delete"} close={close} title="Delete this role?" name={r.name} action="Delete" topics={["role", "grant"]} run={() => ask(api.DELETE("/roles/{id}", { params: { path: { id: r.id }, header: { "If-Match": q.data.etag } } }))} done={() => void go({ href: "/admin/roles" })}>
        Its members lose at once what it opened to them, and their connections end. Its grants go with it.
      </Danger>
    </Page>
  );
}

function Members({ role, manage }: { role: { id: string; name: string }; manage: boolean }) {
  const [adding, setAdding] = useState(false);
  const [editing, setEditing] = useState<Member>();
  const [removing, setRemoving] = useState<Member>();
  const list = useList(["user", "members", role.id], (cursor, signal) => ask(api.GET("/roles/{id}/members", { params: { path: { id: role.id }, query: { cursor, limit: 100 } }, signal })));
  return (
    <Panel title="Members" hint="When and from where each of them holds the role." actions={manage && <Button size="xs" variant="default" leftSection={<IconUserPlus size={16} />} onClick={() => setAdding(true)}>Add member</Button>}>
      {list.error !== null && list.error !== undefined && <ErrorBox error={list.error} again={list.again} />}
      {list.loading ? <Skeleton height={90} /> : list.rows.length === 0 ? <Text size="sm" c="dimmed">Nobody yet.</Text> : (
        <div className={classes.scroll}>
          <table className={classes.plain}>
            <thead><tr><th scope="col">Member</th><th scope="col">When</th><th scope="col">From where</th><th scope="col" data-end><VisuallyHidden>Actions</VisuallyHidden></th></tr></thead>
            <tbody>
              {list.rows.map((m) => (
                <tr key={m.user_id}>
                  <td>{m.user_kind === "client" ? <span>{m.user_name} <Text span size="xs" c="dimmed">API client</Text></span> : <Link to={`/admin/users/${m.user_id}`}>{m.user_name}</Link>}</td>
                  <td>{windowText(m.window)}</td>
                  <td>{m.sources?.length ? m.sources.join(", ") : "anywhere"}</td>
                  <td data-end>{manage && <Group gap={6} justify="flex-end" wrap="nowrap"><Button size="compact-xs" variant="default" onClick={() => setEditing(m)} aria-label={`Change the membership of ${m.user_name}`}>Change</Button><Button size="compact-xs" variant="default" onClick={() => setRemoving(m)} aria-label={`Remove ${m.user_name}`}>Remove</Button></Group>}</td>
                </tr>
              ))}
            </tbody>
          </table>
          {list.more && <Button variant="subtle" size="compact-sm" mt="xs" onClick={list.loadMore}>Show more</Button>}
        </div>
      )}
      <MemberForm opened={adding} close={() => setAdding(false)} role={role} />
      <MemberForm opened={editing !== undefined} close={() => setEditing(undefined)} member={editing} />
      <Confirm
        opened={removing !== undefined} close={() => setRemoving(undefined)} title={`Remove ${removing?.user_name} from ${role.name}?`} action="Remove" danger
        run={async () => { if (removing) await ask(api.DELETE("/roles/{id}/members/{user}", { params: { path: { id: role.id, user: removing.user_id }, header: { "If-Match": `"${removing.version}"` } } })); list.again(); }}
      >
        What the role opened is lost at once; connections that stand on it end.
      </Confirm>
    </Panel>
  );
}
