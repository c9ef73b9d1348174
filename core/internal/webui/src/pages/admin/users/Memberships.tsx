import { Button, Skeleton, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { ErrorBox } from "~/ui/ErrorBox";
import { Panel } from "../parts/Panel";
import classes from "../parts/Table.module.css";
import { windowText } from "../parts/window";
import { MemberForm } from "../roles/MemberForm";

// Memberships are the roles of a user, with when and where from they hold.
export function Memberships({ user }: { user: Schemas["UserUserView"] }) {
  const { can } = useSession();
  const [adding, setAdding] = useState(false);
  const q = useQuery({ queryKey: ["user", "memberships", user.id], queryFn: ({ signal }) => ask(api.GET("/users/{id}/memberships", { params: { path: { id: user.id } }, signal })) });
  const rows = q.data?.items ?? [];
  return (
    <Panel title="Roles" hint="What the user may do and reach comes from roles alone." actions={can("users:manage") && !user.erased_at && <Button size="xs" variant="default" onClick={() => setAdding(true)}>Add to a role</Button>}>
      {q.error && <ErrorBox error={q.error} />}
      {q.isPending ? <Skeleton height={60} /> : rows.length === 0 ? <Text size="sm" c="dimmed">None: the user can sign in and reach nothing.</Text> : (
        <div className={classes.scroll}>
          <table className={classes.plain}>
            <thead><tr><th scope="col">Role</th><th scope="col">When</th><th scope="col">From where</th></tr></thead>
            <tbody>
              {rows.map((m) => (
                <tr key={m.role_id}>
                  <td><Link to={`/admin/roles/${m.role_id}`}>{m.role_name}</Link></td>
                  <td>{windowText(m.window)}</td>
                  <td>{m.sources?.length ? m.sources.join(", ") : "anywhere"}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <MemberForm opened={adding} close={() => setAdding(false)} user={{ id: user.id, name: user.name }} />
    </Panel>
  );
}
