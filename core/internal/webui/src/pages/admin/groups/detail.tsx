import { Anchor, Badge, Button, Group, Skeleton, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { Link, useNavigate, useParams } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, askFull, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { CopyText } from "~/ui/CopyText";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";
import { Time } from "~/ui/Time";
import { Danger } from "../parts/Danger";
import { Facts, Panel } from "../parts/Panel";
import { Anchors } from "./Anchors";
import { Authority } from "./Authority";
import { GroupForm } from "./index";

type View = Schemas["GroupView"];

export default function GroupPage() {
  const { id = "" } = useParams({ strict: false }) as { id?: string };
  const { within, everywhere, can } = useSession();
  const go = useNavigate();
  const [open, setOpen] = useState<"edit" | "delete">();
  const q = useQuery({ queryKey: ["group", "one", id], queryFn: ({ signal }) => askFull(api.GET("/access-groups/{id}", { params: { path: { id } }, signal })) });
  const back = <Anchor component={Link} to="/admin/groups">Access groups</Anchor>;
  if (q.error && !q.data) return <Page title="Access group" back={back}><ErrorBox error={q.error} again={() => void q.refetch()} /></Page>;
  if (!q.data) return <Page title="Access group" back={back}><Skeleton height={140} radius={12} /><Skeleton height={220} radius={12} /></Page>;
  const g = q.data.data;
  const manage = within("groups:manage", g.id);
  const close = () => setOpen(undefined);
  return (
    <Page
      title={g.name} back={back} hint={g.comment}
      actions={manage && <><Button variant="default" onClick={() => setOpen("edit")}>Edit</Button>{everywhere("groups:manage") && !g.builtin && <Button variant="default" onClick={() => setOpen("delete")}>Delete</Button>}</>}
    >
      <Panel title="What is in it" hint="Accounts, host keys and grants are where their target is, edge nodes where their site is; connections and recordings stay where their target was.">
        <Facts rows={[
          ["Targets", <Count key="t" g={g} n={g.counts?.targets} to="/admin/targets" may={can("targets:view")} />],
          ["Sites", <Count key="s" g={g} n={g.counts?.sites} to="/admin/sites" may={can("targets:view")} />],
          ["Roles", <Count key="r" g={g} n={g.counts?.roles} to="/admin/roles" may={can("users:view")} />],
          ["Secrets", <Count key="k" g={g} n={g.counts?.secrets} to="/admin/secrets" may={can("secrets:manage")} />],
          ["ID", <CopyText key="i" text={g.id} />], g.created_at ? ["Created", <Time key="c" at={g.created_at} />] : false,
        ]} />
      </Panel>
      {can("users:view") && <Administrators id={g.id} />}
      <Authority id={g.id} manage={manage} />
      <Anchors id={g.id} manage={manage} />
      <GroupForm opened={open === "edit"} close={close} group={g} etag={q.data.etag} />
      <Danger opened={open === "delete"} close={close} title="Delete this access group?" name={g.name} action="Delete" topics={["group"]} run={() => ask(api.DELETE("/access-groups/{id}", { params: { path: { id: g.id }, header: { "If-Match": q.data.etag } } }))} done={() => void go({ href: "/admin/groups" })}>
        Only an empty group can be deleted. All trust in its SSH authority ends.
      </Danger>
    </Page>
  );
}

// Count leads to what it counts.
function Count({ g, n, to, may }: { g: View; n?: number; to: string; may: boolean }) {
  const text = n === undefined ? "–" : String(n);
  return may && n ? <Anchor component={Link} to={to} search={{ group: g.id } as never} className="nums">{text}</Anchor> : <span className="nums">{text}</span>;
}

// Administrators are the roles whose rights are limited to the group.
function Administrators({ id }: { id: string }) {
  const q = useQuery({ queryKey: ["role", "limited", id], queryFn: ({ signal }) => ask(api.GET("/roles", { params: { query: { limit: 500 } }, signal })) });
  const roles = (q.data?.items ?? []).filter((r) => r.limited_to?.includes(id));
  return (
    <Panel title="Who administers it" hint="Roles with administrative rights that are limited to this group. Whoever holds a right everywhere holds it here, too.">
      {q.error ? <ErrorBox error={q.error} again={() => void q.refetch()} /> : q.isPending ? <Skeleton height={30} /> : roles.length === 0
        ? <Text size="sm" c="dimmed">No role is limited to it. Edit a role to make its members administrators of this group.</Text>
        : <Group gap={6}>{roles.map((r) => <Badge key={r.id} variant="light" tt="none" fw={500} renderRoot={(p) => <Link {...p} to={`/admin/roles/${r.id}`} style={{ cursor: "pointer" }} />}>{r.name}</Badge>)}</Group>}
    </Panel>
  );
}
