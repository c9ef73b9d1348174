import { Alert, Anchor, Skeleton, Text } from "@mantine/core";
import { IconAlertTriangle, IconCircleCheck } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { api, ask } from "~/api/client";
import { useChanges } from "~/app/events";
import { Facts, Panel } from "~/pages/admin/parts/Panel";
import { AuditLine } from "~/pages/admin/audit/Line";
import { bytes } from "~/ui/Bytes";
import { Empty } from "~/ui/Empty";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";
import { Plot } from "~/ui/Plot";
import { Ago, Time } from "~/ui/Time";
import { Browsers } from "./Browsers";
import { Expiring } from "./Expiring";
import { Figures } from "./Figures";
import classes from "./Start.module.css";
import { Trouble } from "./Trouble";
import { useCalm } from "./calm";

const topics = ["connection", "edge", "audit", "recording", "token", "user", "role"] as const;

export default function Start() {
  const q = useQuery({ queryKey: ["overview"], queryFn: ({ signal }) => ask(api.GET("/overview", { signal })) });
  // Much changes at once on a busy day; the page is read again every few seconds at most.
  const refetch = useCalm(() => void q.refetch(), 3000);
  useChanges(topics, refetch);
  const v = q.data;
  if (q.error && !v) return <Page title="Overview"><ErrorBox error={q.error} again={() => void q.refetch()} /></Page>;
  if (!v) return <Page title="Overview"><Waiting /></Page>;
  const s = v.sessions;
  const hours = s?.hours ?? [];
  return (
    <Page title="Overview" hint={<>As of <Time at={v.at} />; it follows by itself.</>}>
      {v.storage?.problem && <Alert color="red" variant="light" icon={<IconAlertTriangle size={20} />} title="Recordings">{v.storage.problem}</Alert>}
      <Figures v={v} />
      <div className={classes.grid}>
        {s && (
          <div className={classes.wide}>
            <Panel title="Connections, last 24 hours" hint={<><b className="nums">{(s.opened + s.failed).toLocaleString()}</b> asked for, <b className="nums">{s.failed.toLocaleString()}</b> failed</>} actions={<Anchor component={Link} to="/connections" size="sm">All connections</Anchor>}>
              <Plot
                label="per hour" height={170}
                series={[
                  { name: "opened", tone: "accent", points: hours.map((h) => ({ at: Date.parse(h.at), n: h.opened })) },
                  { name: "failed", tone: "bad", points: hours.map((h) => ({ at: Date.parse(h.at), n: h.failed })) },
                ]}
              />
            </Panel>
          </div>
        )}
        {v.edges && (
          <Panel title="Needs somebody" hint={v.edges.troubles > (v.edges.trouble?.length ?? 0) ? `${v.edges.trouble?.length} of ${v.edges.troubles}` : undefined} actions={<Anchor component={Link} to="/fleet" size="sm">Fleet</Anchor>}>
            {v.edges.troubles === 0
              ? <Empty icon={IconCircleCheck} title={v.edges.total === 0 ? "No edge nodes yet" : "All nodes are well"}>{v.edges.total === 0 ? <>Enrol the first one on the <Link to="/fleet">Fleet</Link> page.</> : "Nothing to do here."}</Empty>
              : <Trouble list={v.edges.trouble ?? []} />}
          </Panel>
        )}
        {v.edges && <Browsers />}
        {(v.edges || v.expiring?.length) && (
          <Panel title="Ends soon">
            {v.expiring?.length ? <Expiring list={v.expiring} /> : <Empty icon={IconCircleCheck} title="Nothing ends soon">Certificates, tokens and memberships are shown here weeks before their end.</Empty>}
          </Panel>
        )}
        {v.audit && (
          <div className={classes.wide}>
            <Panel title="Latest events" tight actions={<Anchor component={Link} to="/admin/audit" size="sm">Audit log</Anchor>}>
              {v.audit.map((e) => <AuditLine key={e.seq} e={e} />)}
            </Panel>
          </div>
        )}
        {v.storage && (
          <div className={classes.wide}>
            <Panel title="Storage">
              <Facts
                rows={[
                  ["Database", <span key="d">{v.storage.engine === "sqlite" ? "SQLite" : "PostgreSQL"}, <span className="nums">{bytes(v.storage.database_bytes)}</span></span>],
                  ["Free for recordings", v.storage.problem ? "unknown" : <Space key="s" free={v.storage.recordings_free_bytes} total={v.storage.recordings_total_bytes} />],
                  ["Being recorded now", <span key="r" className="nums">{v.storage.recording}</span>],
                  ["Damaged recordings", v.storage.damaged > 0 ? <Text key="x" c="var(--bad)" fw={600} span>{v.storage.damaged}</Text> : "none"],
                  ["Recordings that reach their end within 7 days", <span key="w" className="nums">{v.storage.expiring_week.toLocaleString()}</span>],
                ]}
              />
            </Panel>
          </div>
        )}
      </div>
      {v.sessions && v.sessions.opened === 0 && v.sessions.now === 0 && <Text size="sm" c="dimmed">Nobody has connected in the last 24 hours. <Ago at={v.at} /></Text>}
    </Page>
  );
}

function Space({ free, total }: { free: number; total: number }) {
  const used = total > 0 ? 1 - free / total : 0;
  return (
    <span>
      <span className="nums">{bytes(free)} of {bytes(total)}</span>
      <span className={classes.bar} role="img" aria-label={`${Math.round(used * 100)} % used`}>
        <svg width="100%" height="6" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden><rect width="100" height="6" rx="2" className={classes.track} /><rect width={used * 100} height="6" rx="2" className={classes.used} data-full={used > 0.9 || undefined} /></svg>
      </span>
    </span>
  );
}

function Waiting() {
  return (
    <div aria-busy="true" aria-label="Loading">
      <div className={classes.figures}>{[0, 1, 2, 3].map((i) => <Skeleton key={i} height={92} radius={12} />)}</div>
      <Skeleton height={260} radius={12} mt="md" />
      <div className={classes.grid}><Skeleton height={220} radius={12} mt="md" /><Skeleton height={220} radius={12} mt="md" /></div>
    </div>
  );
}
