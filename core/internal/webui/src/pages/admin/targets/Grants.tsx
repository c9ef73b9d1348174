import { Badge, Button, Group, Skeleton, Text, VisuallyHidden } from "@mantine/core";
import { IconPlus } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { ErrorBox } from "~/ui/ErrorBox";
import { StateBadge } from "~/ui/StateBadge";
import { duration } from "~/ui/Time";
import { useList } from "~/ui/useList";
import { Panel } from "../parts/Panel";
import classes from "../parts/Table.module.css";
import { windowText } from "../parts/window";
import { featureWord, features } from "../roles/permissions";
import { GrantForm } from "./GrantForm";

export type Grant = Schemas["TargetGrantView"];

const uses = (g: Grant) => (g.features.length >= features.length ? "everything" : g.features.map(featureWord).join(", "));

// demands are what a grant asks for besides the role.
function demands(g: Grant): string[] {
  const out: string[] = [];
  if (g.require_mfa) out.push("second factor");
  if (g.require_reason) out.push("reason");
  if (g.no_recording) out.push("may go unrecorded");
  if (g.max_duration_seconds) out.push(`at most ${duration(g.max_duration_seconds)}`);
  if (g.idle_seconds) out.push(`ends after ${duration(g.idle_seconds)} idle`);
  if (g.window && windowText(g.window) !== "always") out.push(windowText(g.window));
  if (g.sources?.length) out.push(`from ${g.sources.join(", ")}`);
  return out;
}

// Grants are the rules of a role, or those that open a target.
export function Grants({ role, target }: { role?: { id: string; name: string }; target?: Schemas["TargetView"] }) {
  const { can } = useSession();
  const manage = can("targets:manage");
  const [form, setForm] = useState<{ grant?: Grant }>();
  const [deleting, setDeleting] = useState<Grant>();
  const list = useList(["grant", role?.id ?? "", target?.id ?? ""], (cursor, signal) => ask(api.GET("/grants", { params: { query: { role: role?.id, target: target?.id, cursor, limit: 200 } }, signal })));
  return (
    <Panel title="Grants" hint={role ? "What the role opens to its members." : "Which roles may use this target, and how."} actions={manage && <Button size="xs" variant="default" leftSection={<IconPlus size={16} />} onClick={() => setForm({})}>Add grant</Button>}>
      {list.error !== null && list.error !== undefined && <ErrorBox error={list.error} again={list.again} />}
      {list.loading ? <Skeleton height={90} /> : list.rows.length === 0 ? <Text size="sm" c="dimmed">{role ? "It opens nothing yet." : "No role is granted this target by name; grants by tag may open it too."}</Text> : (
        <div className={classes.scroll}>
          <table className={classes.plain}>
            <thead><tr><th scope="col">{role ? "Opens" : "Role"}</th><th scope="col">Accounts</th><th scope="col">Uses</th><th scope="col">Demands</th><th scope="col" data-end><VisuallyHidden>Actions</VisuallyHidden></th></tr></thead>
            <tbody>
              {list.rows.map((g) => (
                <tr key={g.id}>
                  <td>{role ? g.tag ? <>all with tag <Badge tt="none" variant="light">{g.tag}</Badge></> : <TargetName id={g.target ?? ""} /> : <RoleName id={g.role} />}{g.disabled && <div><StateBadge state="disabled" /></div>}{g.comment && <Text size="xs" c="dimmed">{g.comment}</Text>}</td>
                  <td>{g.accounts?.includes("*") ? "every account" : g.accounts?.join(", ") || "–"}</td>
                  <td>{uses(g)}</td>
                  <td>{demands(g).join("; ") || <Text span size="sm" c="dimmed">nothing more</Text>}</td>
                  <td data-end>{manage && <Group gap={6} justify="flex-end" wrap="nowrap"><Button size="compact-xs" variant="default" onClick={() => setForm({ grant: g })}>Edit</Button><Button size="compact-xs" variant="default" onClick={() => setDeleting(g)}>Delete</Button></Group>}</td>
                </tr>
              ))}
            </tbody>
          </table>
          {list.more && <Button variant="subtle" size="compact-sm" mt="xs" onClick={list.loadMore}>Show more</Button>}
        </div>
      )}
      <GrantForm opened={form !== undefined} close={() => setForm(undefined)} grant={form?.grant} role={role} target={target} />
      <Confirm opened={deleting !== undefined} close={() => setDeleting(undefined)} title="Delete this grant?" action="Delete" danger run={async () => { if (deleting) await ask(api.DELETE("/grants/{id}", { params: { path: { id: deleting.id }, header: { "If-Match": `"${deleting.version}"` } } })); list.again(); }}>
        Members lose at once what only it opened; connections that stand on it end.
      </Confirm>
    </Panel>
  );
}

// Names are read one by one and kept: a page shows few different ones.
export function TargetName({ id }: { id: string }) {
  const q = useQuery({ queryKey: ["target", "name", id], queryFn: ({ signal }) => ask(api.GET("/targets/{id}", { params: { path: { id } }, signal })), retry: false });
  return <Link to={`/admin/targets/${id}`}>{q.data?.name ?? id}</Link>;
}

export function RoleName({ id }: { id: string }) {
  const { can } = useSession();
  const q = useQuery({ queryKey: ["role", "name", id], queryFn: ({ signal }) => ask(api.GET("/roles/{id}", { params: { path: { id } }, signal })), retry: false, enabled: can("users:view") });
  return can("users:view") ? <Link to={`/admin/roles/${id}`}>{q.data?.name ?? id}</Link> : <span className="mono">{id}</span>;
}
