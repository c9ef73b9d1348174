import { Button, Group, Skeleton, Text, VisuallyHidden } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { ErrorBox } from "~/ui/ErrorBox";
import { StateBadge } from "~/ui/StateBadge";
import { Ago } from "~/ui/Time";
import { Panel } from "../parts/Panel";
import classes from "../parts/Table.module.css";

type Key = Schemas["TargetHostKeyView"];
type Act = { what: "accept" | "reject" | "forget"; key: Key };

const words = { accept: "Accept", reject: "Reject", forget: "Forget" } as const;

export function HostKeys({ target }: { target: Schemas["TargetView"] }) {
  const { within } = useSession();
  const path = { id: target.id };
  const [act, setAct] = useState<Act>();
  const q = useQuery({ queryKey: ["target", "host-keys", target.id], queryFn: ({ signal }) => ask(api.GET("/targets/{id}/host-keys", { params: { path }, signal })) });
  const rows = q.data?.items ?? [];
  const run = async () => {
    if (!act) return;
    const body = { fingerprint: act.key.fingerprint };
    if (act.what === "accept") await ask(api.POST("/targets/{id}/host-keys/accept", { params: { path }, body }));
    else if (act.what === "reject") await ask(api.POST("/targets/{id}/host-keys/reject", { params: { path }, body }));
    else await ask(api.DELETE("/targets/{id}/host-keys", { params: { path, query: body } }));
    await q.refetch();
  };
  return (
    <Panel title="Host keys" hint="What the host proved itself with. A key that changed waits here for a decision.">
      {q.error && <ErrorBox error={q.error} again={() => void q.refetch()} />}
      {q.isPending ? <Skeleton height={60} /> : rows.length === 0 ? <Text size="sm" c="dimmed">None seen yet.</Text> : (
        <div className={classes.scroll}>
          <table className={classes.plain}>
            <thead><tr><th scope="col">Key</th><th scope="col">State</th><th scope="col">Seen</th><th scope="col" data-end><VisuallyHidden>Actions</VisuallyHidden></th></tr></thead>
            <tbody>
              {rows.map((k) => (
                <tr key={k.fingerprint}>
                  <td><span className="mono">{k.fingerprint}</span><Text size="xs" c="dimmed">{k.algorithm}</Text></td>
                  <td><StateBadge state={k.state} tone={k.state === "accepted" ? "good" : k.state === "pending" ? "warn" : "bad"} /></td>
                  <td><Ago at={k.seen_at} /></td>
                  <td data-end>{within("targets:manage", target.group) && <Group gap={6} justify="flex-end" wrap="nowrap">{k.state !== "accepted" && <Button size="compact-xs" variant="default" onClick={() => setAct({ what: "accept", key: k })}>Accept</Button>}{k.state === "pending" && <Button size="compact-xs" variant="default" onClick={() => setAct({ what: "reject", key: k })}>Reject</Button>}<Button size="compact-xs" variant="default" onClick={() => setAct({ what: "forget", key: k })}>Forget</Button></Group>}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <Confirm opened={act !== undefined} close={() => setAct(undefined)} title={act ? `${words[act.what]} this host key?` : ""} action={act ? words[act.what] : ""} danger={act?.what !== "accept"} run={run}>
        <p className="mono">{act?.key.fingerprint}</p>
        {act?.what === "accept" && "Compare it with the host's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub). It replaces the accepted one of its algorithm."}
        {act?.what === "reject" && "The host is refused with this key for good."}
        {act?.what === "forget" && "The next connection decides by the target's host-key rule again."}
      </Confirm>
    </Panel>
  );
}
