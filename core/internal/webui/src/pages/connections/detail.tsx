import { Alert, Anchor, Badge, Button, Group, TagsInput, Title } from "@mantine/core";
import { IconBrowser, IconEye, IconLock, IconLockOpen, IconMovie, IconPlayerStop } from "@tabler/icons-react";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useParams } from "@tanstack/react-router";
import { type ReactNode, useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { Loading } from "~/app/Unreachable";
import { bytes } from "~/ui/Bytes";
import { CopyText } from "~/ui/CopyText";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";
import { StateBadge } from "~/ui/StateBadge";
import { Lasting, Time } from "~/ui/Time";
import { Lock, Terminate, useUnlock } from "./actions";
import { Channels } from "./Channels";
import classes from "./connections.module.css";
import { viewPath } from "../web/path";
import { useMayAct } from "./RowMenu";
import { useWeb, WebFacts } from "./WebFacts";
import { type Connection, ending, kindName, live, route, stateOf, watchPath } from "./words";

export default function ConnectionPage() {
  const { id = "" } = useParams({ strict: false }) as { id?: string };
  const q = useQuery({ queryKey: ["connection", "one", id], queryFn: ({ signal }) => ask(api.GET("/connections/{id}", { params: { path: { id } }, signal })) });
  if (q.data) return <Detail c={q.data} />;
  return <Page title="Connection" back={<Back />}>{q.error ? <ErrorBox error={q.error} again={() => void q.refetch()} /> : <Loading />}</Page>;
}

const Back = () => <Anchor component={Link} to="/connections" size="sm">← Connections</Anchor>;

function Detail({ c }: { c: Connection }) {
  const may = useMayAct(c);
  const unlock = useUnlock(c.id);
  const [dialog, setDialog] = useState<"terminate" | "lock">();
  const close = () => setDialog(undefined);
  const web = useWeb(c);
  const stations = route(c, web);
  return (
    <Page
      title={c.account ? `${c.account} on ${c.target_name}` : c.target_name} back={<Back />}
      hint={<Group gap="sm"><StateBadge {...stateOf(c)} /><span>{kindName(c.kind)} by {c.user_name}, <Lasting from={c.connected_at} to={c.ended_at} seconds={c.duration_s} /></span></Group>}
      actions={
        <>
          {may.watch && (c.kind === "web" ? <Button component="a" href={watchPath(c)} target="_blank" rel="noopener" variant="default" leftSection={<IconEye size={17} />}>Watch live</Button> : <Button component={Link} to={watchPath(c)} variant="default" leftSection={<IconEye size={17} />}>Watch live</Button>)}
          {may.use && <Button component="a" href={viewPath(c.id)} target="_blank" rel="noopener" variant="default" leftSection={<IconBrowser size={17} />}>Open its window</Button>}
          {may.play && <Button component={Link} to={`/recordings/${c.recording_id}`} variant="default" leftSection={<IconMovie size={17} />}>Play recording</Button>}
          {may.lock && <Button variant="default" leftSection={<IconLock size={17} />} onClick={() => setDialog("lock")}>Lock</Button>}
          {may.unlock && <Button variant="default" leftSection={<IconLockOpen size={17} />} loading={unlock.isPending} onClick={() => unlock.mutate()}>Unlock</Button>}
          {may.terminate && <Button color="red" leftSection={<IconPlayerStop size={17} />} onClick={() => setDialog("terminate")}>Terminate</Button>}
        </>
      }
    >
      {unlock.error && <ErrorBox error={unlock.error} />}
      {c.locked_at && (
        <Alert color="yellow" variant="light" icon={<IconLock size={19} />} title={`Locked by ${c.locked_by}`}>
          {c.lock_text} {c.lock_block === "target" && "New connections to this target are stopped too. "}{c.lock_block === "user" && "New connections of this user are stopped too. "}Since <Time at={c.locked_at} />.
        </Alert>
      )}
      <div className={classes.grid}>
        <div className={classes.column}>
          <section className={classes.card}>
            <Title order={2}>Route</Title>
            <ol className={classes.route}>{stations.map((s) => <li key={s.name + s.what}><b>{s.name}</b><span>{s.what}</span></li>)}</ol>
          </section>
          <section className={classes.card}>
            <Title order={2}>What happened</Title>
            <Channels id={c.id} />
          </section>
        </div>
        <div className={classes.column}>
          <section className={classes.card}>
            <div className={classes.bytes}>
              <div><b>{bytes(c.bytes_out)}</b>to the user</div>
              <div><b>{bytes(c.bytes_in)}</b>from the user</div>
            </div>
          </section>
          <Facts title="Time" rows={[
            ["Requested", <Time key="r" at={c.requested_at} />], ["Connected", <Time key="c" at={c.connected_at} />],
            live(c) ? ["Last activity", <Time key="a" at={c.last_activity_at} />] : ["Ended", <Time key="e" at={c.ended_at} />],
            !live(c) && ["Because", <span key="b">{ending(c)}{c.end_detail && <span className={classes.second}><br />{c.end_detail}</span>}</span>],
            c.terminated_by && ["Terminated by", <span key="t">{c.terminated_by}{c.termination_text && <>: “{c.termination_text}”</>}</span>],
          ]} />
          <Facts title="Who and why" rows={[
            ["User", <Person key="u" c={c} />], ["From", c.source], ["Signed in by", `${(c.auth_methods ?? []).join(", ")}${c.mfa ? " (two factors)" : ""}`],
            ["Client", c.user_agent], ["Reason", c.reason], ["Allowed by role", <Role key="r" c={c} />], ["Roles held", (c.user_roles ?? []).join(", ")], ["Recording", recordingState(c)],
          ]} />
          {web && <WebFacts s={web} />}
          <Facts title="Where" rows={[
            ["Target", c.target_address], ["Site", c.site || "reached by core itself"], ["Extender", c.node_name], ["Transport", [c.transport, c.binding].filter(Boolean).join(", ")], ["Core", c.core_id],
            ["ID", <CopyText key="i" text={c.id} label="Copy the ID" />],
          ]} />
          <Tags c={c} />
        </div>
      </div>
      <Terminate c={c} opened={dialog === "terminate"} close={close} />
      <Lock c={c} opened={dialog === "lock"} close={close} />
    </Page>
  );
}

function recordingState(c: Connection): string {
  if (!c.recording_id) return c.recorded ? "None was made" : "Not recorded";
  return { recording: "Being recorded", complete: "Complete", incomplete: "Incomplete", damaged: "Damaged", expired: "Expired and removed" }[c.recording_state ?? ""] ?? "Recorded";
}

function Person({ c }: { c: Connection }) {
  const { can } = useSession();
  return can("users:view") ? <Anchor component={Link} to={`/admin/users/${c.user_id}`} size="sm">{c.user_name}</Anchor> : c.user_name;
}

// Role names the role that allowed the use; its name needs a permission.
function Role({ c }: { c: Connection }) {
  const { can } = useSession();
  const q = useQuery({
    queryKey: ["role", "one", c.role_id], enabled: Boolean(c.role_id) && can("users:view"),
    queryFn: ({ signal }) => ask(api.GET("/roles/{id}", { params: { path: { id: c.role_id ?? "" } }, signal })),
  });
  if (!c.role_id) return "–";
  return q.data ? <Anchor component={Link} to={`/admin/roles/${c.role_id}`} size="sm">{q.data.name}</Anchor> : <span className="mono">{c.role_id}</span>;
}

function Facts({ title, rows }: { title: string; rows: ([string, ReactNode] | false | "" | undefined)[] }) {
  const shown = rows.filter((r): r is [string, ReactNode] => Boolean(r) && Boolean((r as [string, ReactNode])[1]));
  return (
    <section className={classes.card}>
      <Title order={2}>{title}</Title>
      <dl className={classes.facts}>{shown.map(([k, v]) => [<dt key={`${k}t`}>{k}</dt>, <dd key={k}>{v}</dd>])}</dl>
    </section>
  );
}

function Tags({ c }: { c: Connection }) {
  const { can } = useSession();
  const client = useQueryClient();
  const save = useMutation({
    mutationFn: (tags: string[]) => ask(api.PUT("/connections/{id}/tags", { params: { path: { id: c.id } }, body: { tags } })),
    onSettled: () => client.invalidateQueries({ queryKey: ["connection"] }),
  });
  const tags = save.isPending ? save.variables : (c.tags ?? []);
  if (!can("connections:manage")) return tags.length > 0 ? <section className={classes.card}><Title order={2}>Tags</Title><Group gap={6}>{tags.map((t) => <Badge key={t} tt="none">{t}</Badge>)}</Group></section> : null;
  return (
    <section className={classes.card}>
      <TagsInput label="Tags" placeholder={tags.length ? "" : "Add a tag"} value={tags} onChange={(t) => save.mutate(t)} error={save.error?.message} maxTags={20} />
    </section>
  );
}
