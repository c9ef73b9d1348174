import { Alert, Anchor, Button, Group, Menu, Skeleton, Text, TextInput, Textarea } from "@mantine/core";
import { IconAlertTriangle, IconChevronDown } from "@tabler/icons-react";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate, useParams } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, askFull } from "~/api/client";
import { useSession } from "~/app/session";
import { bytes } from "~/ui/Bytes";
import { Confirm } from "~/ui/Confirm";
import { CopyText } from "~/ui/CopyText";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";
import { Sparkline } from "~/ui/Plot";
import { StateBadge } from "~/ui/StateBadge";
import { Ago, Time } from "~/ui/Time";
import { Danger } from "../admin/parts/Danger";
import { FormModal } from "../admin/parts/FormModal";
import { Facts, Panel } from "../admin/parts/Panel";
import { Feed } from "./Feed";
import classes from "./Fleet.module.css";
import { bindingText, type Edge, findingText, health, kindWord, labelText, lines, parseLabels, rtt, skew } from "./edge";

export default function EdgeNode() {
  const { id = "" } = useParams({ strict: false }) as { id?: string };
  const { can } = useSession();
  const q = useQuery({ queryKey: ["edge", "one", id], queryFn: ({ signal }) => askFull(api.GET("/edges/{id}", { params: { path: { id } }, signal })) });
  const back = <Anchor component={Link} to="/fleet">Fleet</Anchor>;
  if (q.error && !q.data) return <Page title="Edge node" back={back}><ErrorBox error={q.error} again={() => void q.refetch()} /></Page>;
  if (!q.data) return <Page title="Edge node" back={back}><Skeleton height={180} radius={12} /><Skeleton height={220} radius={12} /></Page>;
  const e = q.data.data;
  const h = health(e);
  return (
    <Page title={e.name} back={back} hint={<Group gap="sm"><StateBadge state={e.health} tone={h.tone} label={h.label} /><span>{kindWord(e.kind)}{e.site ? <> in site {e.site}</> : null}</span></Group>} actions={can("edges:manage") && <Actions e={e} etag={q.data.etag} />}>
      {e.warnings?.map((w) => <Alert key={w} variant="light" color="yellow" icon={<IconAlertTriangle size={20} />} p="sm">{w}</Alert>)}
      {e.health === "offline" && <Alert variant="light" color="red" icon={<IconAlertTriangle size={20} />} p="sm" title={<>Not connected since <Ago at={e.last_seen} /></>}>{e.last_error ? `It said: ${e.last_error}` : "Look at its log: journalctl -u caponier-" + e.kind}</Alert>}
      {e.health === "cordoned" && <Alert variant="light" color="yellow" p="sm">It takes no new connections. {e.tunnel ? e.tunnel.streams === 0 ? "Nothing goes through it any more: it can be stopped." : `${e.tunnel.streams} streams are still open.` : ""}</Alert>}
      {e.tunnel?.web && <WebPanel e={e} w={e.tunnel.web} />}
      {e.tunnel && <TunnelPanel t={e.tunnel} />}
      <div className={classes.two}>
        <Panel title="Identity">
          <Facts rows={[
            ["ID", <CopyText key="i" text={e.id} />], ["Enrolled", <Time key="e" at={e.created_at} />], ["Certificate ends", <span key="c"><Time at={e.certificate_not_after} />, serial <span className="mono">{e.certificate_serial.slice(0, 12)}…</span></span>],
            ["Enrolment token", <span key="t" className="mono">{e.enrolment_token_id}</span>], ["Labels", Object.keys(e.labels).length ? <span key="l" className="mono">{labelText(e.labels).replaceAll("\n", ", ")}</span> : "none"],
          ]} />
        </Panel>
        <Panel title="May dial" hint="What core narrows; the node's own configuration holds besides.">
          <Facts rows={[
            ["Allowed networks", e.rules.allow?.length ? e.rules.allow.join(", ") : "what the node allows"], ["Denied networks", e.rules.deny?.length ? e.rules.deny.join(", ") : "none"], ["Ports", e.rules.ports?.length ? e.rules.ports.join(", ") : "every port"],
          ]} />
        </Panel>
      </div>
      {can("audit:view") && <Panel title="Events" tight><Feed node={e.id} short /></Panel>}
    </Page>
  );
}

function TunnelPanel({ t }: { t: NonNullable<Edge["tunnel"]> }) {
  const past = t.history;
  const line = (values: readonly number[] | undefined, label: string) => (values && values.length > 1 ? <Sparkline values={values} width={150} height={30} label={label} /> : null);
  return (
    <Panel title="Tunnel" hint={bindingText(t.binding)}>
      <Facts rows={[
        ["Round trip", <span key="r" className="nums">{rtt(t.rtt_ms)}{line(past?.rtt_ms, "Round-trip time of the last reports")}</span>],
        ["Open streams", <span key="s" className="nums">{t.streams.toLocaleString()} <Text span size="sm" c="dimmed">of {t.streams_total.toLocaleString()} so far</Text>{line(past?.streams, "Open streams at the last reports")}</span>],
        ["Transport", t.transport === "quic" ? "QUIC" : "Secure WebSocket"],
        ["Core was found by", findingText(t.finding)],
        ["Comes from", <span key="a" className="mono">{t.remote}</span>],
        ["Core", <span key="k" className="mono">{t.core}</span>],
        ["Connected", <Ago key="c" at={t.connected_at} />],
        ["Process started", <Ago key="p" at={t.started_at} />],
        ["Version", t.build],
        ["Clock", skew(t.clock_skew_ms)],
        ["Carried", <span key="b" className="nums">{bytes(t.bytes_in)} in, {bytes(t.bytes_out)} out</span>],
        ["Refused by rule, failed", <span key="f" className="nums">{t.refused.toLocaleString()}, {t.failed.toLocaleString()}</span>],
        ["Memory", t.memory_bytes ? bytes(t.memory_bytes) : "–"],
        ["Last report", t.reported_at ? <Ago key="l" at={t.reported_at} /> : "none yet"],
        t.deploy_address ? ["Host deployment", <span key="d" className="mono">{t.deploy_address}</span>] : false,
        t.deploy_pin ? ["Its pin", <CopyText key="dp" text={`sha256//${t.deploy_pin.replace(/^sha256\/\//, "")}`} />] : false,
      ]} />
    </Panel>
  );
}

function WebPanel({ e, w }: { e: Edge; w: NonNullable<NonNullable<Edge["tunnel"]>["web"]> }) {
  return (
    <Panel title="Web sessions" actions={<Anchor component={Link} to="/connections?kind=web&when=live" size="sm">Live ones</Anchor>}>
      {w.problem && <Alert variant="light" color="red" icon={<IconAlertTriangle size={20} />} p="sm" mb="sm">{w.problem}</Alert>}
      <Facts rows={[
        ["Sessions now", <span key="l" className="nums">{w.live.toLocaleString()} of {w.max.toLocaleString()}</span>], ["Room for", <span key="r" className="nums">{w.room.toLocaleString()} more</span>],
        e.kind === "carrier" ? ["Browsers that are ready", <span key="w" className="nums">{w.warm.toLocaleString()}</span>] : false,
        w.address ? ["Carriers reach it at", <span key="a" className="mono">{w.address}</span>] : false,
      ]} />
    </Panel>
  );
}

function Actions({ e, etag }: { e: Edge; etag: string }) {
  const [open, setOpen] = useState<"edit" | "drain" | "revoke" | "delete">();
  const client = useQueryClient();
  const go = useNavigate();
  const again = () => client.invalidateQueries({ queryKey: ["edge"] });
  const path = { id: e.id };
  const cordon = useMutation({ mutationFn: (cordoned: boolean) => ask(api.PATCH("/edges/{id}", { params: { path, header: { "If-Match": etag } }, body: { cordoned } })), onSuccess: again });
  const close = () => setOpen(undefined);
  if (e.health === "revoked") return (
    <>
      <Button variant="default" onClick={() => setOpen("delete")}>Forget</Button>
      <Danger opened={open === "delete"} close={close} title="Forget this node?" name={e.name} action="Forget" topics={["edge"]} run={() => ask(api.DELETE("/edges/{id}", { params: { path } }))} done={() => void go({ href: "/fleet" })}>Its row goes; what it did stays in the audit log.</Danger>
    </>
  );
  return (
    <>
      {cordon.error && <Text size="sm" c="var(--bad)" role="alert">{cordon.error.message}</Text>}
      <Button variant="default" onClick={() => setOpen("edit")}>Edit</Button>
      {e.cordoned
        ? <Button variant="default" loading={cordon.isPending} onClick={() => cordon.mutate(false)}>Uncordon</Button>
        : <Button variant="default" loading={cordon.isPending} onClick={() => cordon.mutate(true)}>Cordon</Button>}
      <Menu position="bottom-end">
        <Menu.Target><Button variant="default" rightSection={<IconChevronDown size={16} />}>More</Button></Menu.Target>
        <Menu.Dropdown>
          <Menu.Item onClick={() => setOpen("drain")} disabled={e.cordoned}>Drain before stopping it…</Menu.Item>
          <Menu.Item color="red" onClick={() => setOpen("revoke")}>Revoke…</Menu.Item>
          <Menu.Item color="red" onClick={() => setOpen("delete")}>Revoke and forget…</Menu.Item>
        </Menu.Dropdown>
      </Menu>
      <Edit e={e} etag={etag} opened={open === "edit"} close={close} />
      <Confirm opened={open === "drain"} close={close} title={`Drain ${e.name}?`} action="Drain" run={async () => { await ask(api.POST("/edges/{id}/drain", { params: { path } })); await again(); }}>
        It gets no new connections. The {e.tunnel?.streams ?? 0} streams that are open go on; this page says when none is left and it can be stopped.
      </Confirm>
      <Danger opened={open === "revoke"} close={close} title="Revoke this node?" name={e.name} action="Revoke" topics={["edge"]} run={() => ask(api.POST("/edges/{id}/revoke", { params: { path } }))}>
        Its tunnel ends at once with everything in it{e.tunnel ? ` (${e.tunnel.streams} streams)` : ""}. Its identity never comes back: the machine must be enrolled again.
      </Danger>
      <Danger opened={open === "delete"} close={close} title="Revoke and forget this node?" name={e.name} action="Revoke and forget" topics={["edge"]} run={() => ask(api.DELETE("/edges/{id}", { params: { path } }))} done={() => void go({ href: "/fleet" })}>
        Its tunnel ends at once, its identity never comes back, and its row goes.
      </Danger>
    </>
  );
}

function Edit({ e, etag, opened, close }: { e: Edge; etag: string; opened: boolean; close: () => void }) {
  return (
    <FormModal
      opened={opened} close={close} title={`Edit ${e.name}`} topics={["edge"]}
      initial={() => ({ name: e.name, site: e.site ?? "", labels: labelText(e.labels), allow: e.rules.allow?.join("\n") ?? "", deny: e.rules.deny?.join("\n") ?? "", ports: e.rules.ports?.join(", ") ?? "" })}
      save={(v) => ask(api.PATCH("/edges/{id}", { params: { path: { id: e.id }, header: { "If-Match": etag } }, body: { name: v.name, site: v.site, labels: parseLabels(v.labels), rules: { allow: lines(v.allow), deny: lines(v.deny), ports: lines(v.ports) } } }))}
    >
      {({ v, set, at }) => (
        <>
          <TextInput label="Name" value={v.name} onChange={(x) => set({ name: x.currentTarget.value })} error={at("name")} required data-autofocus />
          <TextInput label="Site" description="Changing it changes which targets go through this node." value={v.site} onChange={(x) => set({ site: x.currentTarget.value })} error={at("site")} />
          <Textarea label="Labels" description="key=value, one per line." autosize minRows={2} value={v.labels} onChange={(x) => set({ labels: x.currentTarget.value })} error={at("labels")} />
          <Textarea label="Allowed networks" description="One per line; empty: what the node's own configuration allows." placeholder="10.10.0.0/16" autosize minRows={2} value={v.allow} onChange={(x) => set({ allow: x.currentTarget.value })} error={at("rules")} />
          <Textarea label="Denied networks" description="Wins over what is allowed." autosize minRows={1} value={v.deny} onChange={(x) => set({ deny: x.currentTarget.value })} />
          <TextInput label="Ports" description="22, 8000-8999; empty: every port." value={v.ports} onChange={(x) => set({ ports: x.currentTarget.value })} />
        </>
      )}
    </FormModal>
  );
}
