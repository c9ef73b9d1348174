import { Alert, Anchor, Button, Group, Skeleton } from "@mantine/core";
import { IconPlayerPlay, IconStethoscope } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link, useNavigate, useParams } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, askFull } from "~/api/client";
import { useSession } from "~/app/session";
import { CopyText } from "~/ui/CopyText";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";
import { StateBadge } from "~/ui/StateBadge";
import { Ago, Time } from "~/ui/Time";
import { Trail } from "../audit/Trail";
import { Danger } from "../parts/Danger";
import { GroupName } from "../parts/GroupPicker";
import { useGroups } from "../parts/groups";
import { Facts, Panel } from "../parts/Panel";
import { WebFacts } from "../web/WebFacts";
import { Accounts } from "./Accounts";
import { Grants } from "./Grants";
import { HostKeys } from "./HostKeys";
import { TargetForm } from "./TargetForm";
import { Test } from "./Test";

export default function TargetPage() {
  const { id = "" } = useParams({ strict: false }) as { id?: string };
  const { can, within } = useSession();
  const { several } = useGroups();
  const go = useNavigate();
  const [open, setOpen] = useState<"edit" | "delete" | "test">();
  const q = useQuery({ queryKey: ["target", "one", id], queryFn: ({ signal }) => askFull(api.GET("/targets/{id}", { params: { path: { id } }, signal })) });
  const back = <Anchor component={Link} to="/admin/targets">Targets</Anchor>;
  if (q.error && !q.data) return <Page title="Target" back={back}><ErrorBox error={q.error} again={() => void q.refetch()} /></Page>;
  if (!q.data) return <Page title="Target" back={back}><Skeleton height={140} radius={12} /><Skeleton height={220} radius={12} /></Page>;
  const t = q.data.data;
  const close = () => setOpen(undefined);
  const probed = t.kind === "ssh" || t.kind === "tcp";
  return (
    <Page
      title={t.name} back={back} hint={<Group gap="sm"><StateBadge state={t.disabled ? "disabled" : "active"} label={t.disabled ? "Out of service" : "In use"} />{t.comment}</Group>}
      actions={
        <>
          {probed && <Button variant="default" leftSection={<IconStethoscope size={17} />} onClick={() => setOpen("test")}>Test this</Button>}
          {t.kind === "web" && within("targets:manage", t.group) && <Button variant="default" leftSection={<IconPlayerPlay size={17} />} renderRoot={(p) => <Link {...p} to={`/admin/targets/${t.id}/try`} />}>Try it</Button>}
          {within("targets:manage", t.group) && <>{t.kind === "web" ? <Button variant="default" renderRoot={(p) => <Link {...p} to={`/admin/targets/${t.id}/web`} />}>Edit</Button> : <Button variant="default" onClick={() => setOpen("edit")}>Edit</Button>}<Button variant="default" onClick={() => setOpen("delete")}>Delete</Button></>}
        </>
      }
    >
      {t.disabled && <Alert variant="light" color="gray" p="sm">Out of service: nobody gets there until it is put back.</Alert>}
      <Panel>
        <Facts rows={[
          ["Address", <CopyText key="a" text={t.address} />], ["Kind", t.kind.toUpperCase()], ["Site", t.site ? <Link key="s" to="/admin/sites">{t.site}</Link> : "none: dialled by core"], ["Tags", t.tags.join(", ") || "none"],
          several && ["Access group", <GroupName key="n" id={t.group} />], ["ID", <CopyText key="i" text={t.id} />], ["Came by", t.origin || "hand"], ["Created", <Time key="c" at={t.created_at} />], ["Changed", <Ago key="u" at={t.updated_at} />],
          t.kind === "ssh" ? ["Host key", { tofu: "the first one seen is pinned", pinned: "only accepted ones", ca: "certificates of an authority" }[t.host_key_policy] ?? t.host_key_policy] : false,
          t.ssh_algorithms ? ["Algorithms", <span key="g" className="mono">{t.ssh_algorithms}</span>] : false,
        ]} />
      </Panel>
      {t.web && <WebFacts w={t.web} />}
      {t.kind !== "network" && <Accounts target={t} />}
      <Grants target={t} />
      {t.kind === "ssh" && <HostKeys target={t} />}
      {can("audit:view") && <Panel title="What happened" tight><Trail object={t.id} /></Panel>}
      <TargetForm opened={open === "edit"} close={close} target={t} etag={q.data.etag} />
      <Test opened={open === "test"} close={close} target={t} />
      <Danger opened={open === "delete"} close={close} title="Delete this target?" name={t.name} action="Delete" topics={["target", "grant"]} run={() => ask(api.DELETE("/targets/{id}", { params: { path: { id: t.id }, header: { "If-Match": q.data.etag } } }))} done={() => void go({ href: "/admin/targets" })}>
        Its accounts, host keys and grants go with it; live connections to it end. Recordings and the audit log stay.
      </Danger>
    </Page>
  );
}
