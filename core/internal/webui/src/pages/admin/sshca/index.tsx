import { Anchor, Button, Group, Skeleton, Text, VisuallyHidden } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { CopyText } from "~/ui/CopyText";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";
import { StateBadge } from "~/ui/StateBadge";
import { Ago } from "~/ui/Time";
import { Panel } from "../parts/Panel";
import classes from "../parts/Table.module.css";

type Key = Schemas["SshcaKey"];

const purposes: Record<string, string> = { target: "Logs in to targets", client: "Signs people's certificates", host: "Signs the front door's host key" };

export default function Certificates() {
  const info = useQuery({ queryKey: ["sshca", "info"], queryFn: ({ signal }) => ask(api.GET("/ssh-ca", { signal })) });
  return (
    <Page title="Certificates" hint="Core logs in to targets with short-lived certificates of its own authority; targets only need to know its key.">
      {info.error && <ErrorBox error={info.error} again={() => void info.refetch()} />}
      {!info.data && !info.error && <Skeleton height={160} radius={12} />}
      {info.data && (
        <>
          <Panel title="On targets" hint={<>For <span className="mono">TrustedUserCAKeys</span> in sshd_config. Hosts that register themselves have it already.</>} actions={<Download href="/api/v1/ssh-ca/public-keys/target" name="caponier-user-ca.pub">Download</Download>}>
            <CopyText block text={info.data.user_ca.trim()} label="Copy the keys" />
          </Panel>
          <Panel title="On people's machines" hint={<>For <span className="mono">known_hosts</span>, so that the SSH front door is known{info.data.bastion ? <>: <span className="mono">{info.data.bastion}</span></> : ""}. The command <span className="mono">caponier login</span> writes it by itself.</>}>
            <CopyText block text={info.data.host_ca.trim().split("\n").map((k) => (k.startsWith("@") ? k : `@cert-authority caponier-bastion ${k}`)).join("\n")} label="Copy the lines" />
          </Panel>
          <Panel title="Trust in edge nodes" hint="Nodes and core prove themselves to each other with certificates of the edge CA; tokens carry the hash of its key.">
            <Group gap="lg"><Download href="/edge/v1/ca" name="caponier-edge-ca.pem">Edge CA (PEM)</Download><Download href="/edge/v1/crl" name="caponier-edge.crl">Revoked nodes (CRL)</Download><Download href="/api/v1/ssh-ca/krl" name="caponier.krl">Revoked SSH certificates (KRL)</Download></Group>
          </Panel>
        </>
      )}
      <Keys />
    </Page>
  );
}

function Download({ href, name, children }: { href: string; name: string; children: React.ReactNode }) {
  return <Anchor href={href} download={name} size="sm">{children}</Anchor>;
}

type Act = { what: "renew"; purpose: "target" | "client" | "host" } | { what: "activate" | "revoke"; key: Key };

function Keys() {
  const { can } = useSession();
  const manage = can("settings:manage");
  const client = useQueryClient();
  const [act, setAct] = useState<Act>();
  const q = useQuery({ queryKey: ["sshca", "keys"], queryFn: ({ signal }) => ask(api.GET("/ssh-ca/keys", { signal })) });
  const again = () => client.invalidateQueries({ queryKey: ["sshca"] });
  const keys = (q.data ?? []) as Key[];
  const run = async () => {
    if (!act) return;
    if (act.what === "renew") await ask(api.POST("/ssh-ca/keys", { body: { purpose: act.purpose } }));
    else if (act.what === "activate") await ask(api.POST("/ssh-ca/keys/{id}/activate", { params: { path: { id: act.key.id } } }));
    else await ask(api.POST("/ssh-ca/keys/{id}/revoke", { params: { path: { id: act.key.id } } }));
    await again();
  };
  return (
    <Panel title="Keys of the SSH authorities" hint="A new key is trusted first and signs when it is made active, so that nothing breaks meanwhile.">
      {q.error && <ErrorBox error={q.error} again={() => void q.refetch()} />}
      {q.isPending ? <Skeleton height={120} /> : (
        <div className={classes.scroll}>
          <table className={classes.plain}>
            <thead><tr><th scope="col">What it does</th><th scope="col">State</th><th scope="col">Fingerprint</th><th scope="col">Made</th><th scope="col" data-end><VisuallyHidden>Actions</VisuallyHidden></th></tr></thead>
            <tbody>
              {keys.map((k) => (
                <tr key={k.id}>
                  <td>{purposes[k.purpose] ?? k.purpose}<Text size="xs" c="dimmed">generation {k.generation}</Text></td>
                  <td><StateBadge state={k.state} tone={k.state === "active" ? "good" : k.state === "revoked" ? "bad" : "busy"} /></td>
                  <td className="mono">{k.fingerprint}</td>
                  <td><Ago at={k.created_at} /></td>
                  <td data-end>
                    {manage && (
                      <Group gap={6} justify="flex-end" wrap="nowrap">
                        {k.state === "active" ? <Button size="compact-xs" variant="default" onClick={() => setAct({ what: "renew", purpose: k.purpose as "target" })}>New key…</Button> : k.state !== "revoked" && (
                          <>
                            <Button size="compact-xs" variant="default" onClick={() => setAct({ what: "activate", key: k })}>Make active…</Button>
                            <Button size="compact-xs" variant="default" onClick={() => setAct({ what: "revoke", key: k })}>Revoke…</Button>
                          </>
                        )}
                      </Group>
                    )}
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <Confirm
        opened={act !== undefined} close={() => setAct(undefined)} run={run} danger={act?.what === "revoke"}
        title={act?.what === "renew" ? "Make a new key?" : act?.what === "activate" ? "Sign with this key from now on?" : "End all trust in this key?"}
        action={act?.what === "renew" ? "Make a new key" : act?.what === "activate" ? "Make active" : "Revoke"}
      >
        {act?.what === "renew" && "It is trusted at once and does not sign yet. Put the new lines on all targets, then make it active."}
        {act?.what === "activate" && "Targets that do not know it yet refuse core from then on. Test one before."}
        {act?.what === "revoke" && "Certificates it signed are worth nothing from then on."}
      </Confirm>
    </Panel>
  );
}
