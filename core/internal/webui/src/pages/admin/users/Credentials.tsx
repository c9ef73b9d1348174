import { Button, Skeleton, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { ErrorBox } from "~/ui/ErrorBox";
import { Ago } from "~/ui/Time";
import { Panel } from "../parts/Panel";
import classes from "../parts/Table.module.css";

type User = Schemas["UserUserView"];

// Credentials are the keys, tokens and sessions of a user, to look at and to end.
export function Credentials({ user }: { user: User }) {
  return (
    <>
      <Sessions user={user} />
      <Tokens user={user} />
      <Keys user={user} />
    </>
  );
}

interface Row {
  id: string;
  main: React.ReactNode;
  note: React.ReactNode;
}

function Things({ title, none, rows, pending, error, end, verb, again }: { title: string; none: string; rows: Row[]; pending: boolean; error: unknown; end: (id: string) => Promise<unknown>; verb: string; again: () => void }) {
  const { everywhere } = useSession();
  const [ending, setEnding] = useState<string>();
  return (
    <Panel title={title}>
      {error !== null && <ErrorBox error={error} again={again} />}
      {pending ? <Skeleton height={50} /> : rows.length === 0 ? <Text size="sm" c="dimmed">{none}</Text> : (
        <div className={classes.scroll}>
          <table className={classes.plain} aria-label={title}>
            <tbody>
              {rows.map((r) => (
                <tr key={r.id}>
                  <td><div>{r.main}</div><Text size="xs" c="dimmed" component="div">{r.note}</Text></td>
                  <td data-end>{everywhere("users:manage") && <Button size="compact-xs" variant="default" onClick={() => setEnding(r.id)}>{verb}</Button>}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <Confirm opened={ending !== undefined} close={() => setEnding(undefined)} title={`${verb}?`} action={verb} danger run={async () => { if (ending) await end(ending); again(); }}>
        What was opened with it ends with it.
      </Confirm>
    </Panel>
  );
}

function Sessions({ user }: { user: User }) {
  const path = { id: user.id };
  const q = useQuery({ queryKey: ["user", "sessions", user.id], queryFn: ({ signal }) => ask(api.GET("/users/{id}/sessions", { params: { path }, signal })) });
  const rows = (q.data?.items ?? []).filter((s) => !s.revoked_at && Date.parse(s.expires_at) > Date.now()).map((s) => ({
    id: s.id, main: <>{s.kind === "cookie" ? "Console" : "Command line"} from <span className="mono">{s.source}</span>{s.current ? " (this one)" : ""}</>, note: <>seen <Ago at={s.seen_at} />, ends <Ago at={s.expires_at} />; {(s.methods ?? []).join(" and ")}</>,
  }));
  return <Things title="Sessions" none="Not signed in anywhere." rows={rows} pending={q.isPending} error={q.error} verb="End" end={(session) => ask(api.DELETE("/users/{id}/sessions/{part}", { params: { path: { id: user.id, part: session } } }))} again={() => void q.refetch()} />;
}

function Tokens({ user }: { user: User }) {
  const q = useQuery({ queryKey: ["token", "user", user.id], queryFn: ({ signal }) => ask(api.GET("/users/{id}/tokens", { params: { path: { id: user.id } }, signal })) });
  const rows = (q.data?.items ?? []).filter((t) => !t.revoked_at && Date.parse(t.expires_at) > Date.now()).map((t) => ({
    id: t.id, main: t.name, note: <>ends <Ago at={t.expires_at} />; {t.last_used ? <>used <Ago at={t.last_used} /> from {t.last_source}</> : "never used"}</>,
  }));
  return <Things title="API tokens" none="None." rows={rows} pending={q.isPending} error={q.error} verb="Revoke" end={(id) => ask(api.DELETE("/tokens/{id}", { params: { path: { id } } }))} again={() => void q.refetch()} />;
}

function Keys({ user }: { user: User }) {
  const q = useQuery({ queryKey: ["user", "keys", user.id], queryFn: ({ signal }) => ask(api.GET("/users/{id}/keys", { params: { path: { id: user.id } }, signal })) });
  const rows = (q.data?.items ?? []).map((k) => ({
    id: k.id, main: <>{k.comment || k.algorithm}</>, note: <><span className="mono">{k.fingerprint}</span>; {k.last_used ? <>used <Ago at={k.last_used} /></> : "never used"}</>,
  }));
  return <Things title="SSH keys" none="None." rows={rows} pending={q.isPending} error={q.error} verb="Remove" end={(key) => ask(api.DELETE("/users/{id}/keys/{part}", { params: { path: { id: user.id, part: key } } }))} again={() => void q.refetch()} />;
}
