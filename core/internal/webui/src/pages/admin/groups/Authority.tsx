import { Button, Group, List, Skeleton, Text, VisuallyHidden } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { Confirm } from "~/ui/Confirm";
import { CopyText } from "~/ui/CopyText";
import { ErrorBox } from "~/ui/ErrorBox";
import { StateBadge } from "~/ui/StateBadge";
import { Ago } from "~/ui/Time";
import { Panel } from "../parts/Panel";
import classes from "../parts/Table.module.css";

type Key = Schemas["SshcaKey"];
type Act = { what: "renew" } | { what: "activate" | "revoke"; key: Key };

const said: Record<Act["what"], { title: string; action: string }> = {
  renew: { title: "Make the next key?", action: "Make the next key" },
  activate: { title: "Sign with this key from now on?", action: "Make active" },
  revoke: { title: "End all trust in this key?", action: "Revoke" },
};

// Authority is what signs core's logins on the group's targets.
export function Authority({ id, manage }: { id: string; manage: boolean }) {
  const client = useQueryClient();
  const [act, setAct] = useState<Act>();
  const q = useQuery({ queryKey: ["group", "ssh-ca", id], queryFn: ({ signal }) => ask(api.GET("/access-groups/{id}/ssh-ca", { params: { path: { id } }, signal })) });
  const run = async () => {
    if (!act) return;
    if (act.what === "renew") await ask(api.POST("/access-groups/{id}/ssh-ca/keys", { params: { path: { id } } }));
    else if (act.what === "activate") await ask(api.POST("/access-groups/{id}/ssh-ca/keys/{key}/activate", { params: { path: { id, key: act.key.id } } }));
    else await ask(api.POST("/access-groups/{id}/ssh-ca/keys/{key}/revoke", { params: { path: { id, key: act.key.id } } }));
    await client.invalidateQueries({ queryKey: ["group", "ssh-ca", id] });
  };
  const keys = q.data?.keys ?? [];
  const waiting = keys.some((k) => k.state === "next");
  return (
    <Panel
      title="SSH authority" hint="Core logs in to the group's targets with certificates of these keys. They open no target of another group."
      actions={manage && q.data && !waiting && <Button size="xs" variant="default" onClick={() => setAct({ what: "renew" })}>Renew…</Button>}
    >
      {q.error && <ErrorBox error={q.error} again={() => void q.refetch()} />}
      {q.isPending ? <Skeleton height={120} /> : q.data && (
        <>
          <Text size="sm" mb={6}>Lines for <span className="mono">TrustedUserCAKeys</span> of its targets:</Text>
          {q.data.user_ca.trim().split("\n").map((line) => <CopyText key={line} text={line} />)}
          <div className={classes.scroll} tabIndex={0} role="region" aria-label="Keys">
            <table className={classes.plain}>
              <thead><tr><th scope="col">Key</th><th scope="col">State</th><th scope="col">Fingerprint</th><th scope="col">Made</th><th scope="col" data-end><VisuallyHidden>Actions</VisuallyHidden></th></tr></thead>
              <tbody>
                {keys.map((k) => (
                  <tr key={k.id}>
                    <td>generation {k.generation}</td>
                    <td><StateBadge state={k.state} tone={k.state === "active" ? "good" : k.state === "revoked" ? "bad" : "busy"} /></td>
                    <td className="mono">{k.fingerprint}</td>
                    <td><Ago at={k.created_at} /></td>
                    <td data-end>
                      {manage && (k.state === "next" || k.state === "retired") && (
                        <Group gap={6} justify="flex-end" wrap="nowrap">
                          {k.state === "next" && <Button size="compact-xs" variant="default" onClick={() => setAct({ what: "activate", key: k })} aria-label={`Make generation ${k.generation} active`}>Make active…</Button>}
                          <Button size="compact-xs" variant="default" onClick={() => setAct({ what: "revoke", key: k })} aria-label={`Revoke generation ${k.generation}`}>Revoke…</Button>
                        </Group>
                      )}
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        </>
      )}
      <Confirm opened={act !== undefined} close={() => setAct(undefined)} run={run} danger={act?.what === "revoke"} title={act ? said[act.what].title : ""} action={act ? said[act.what].action : ""}>
        {act && <Consequences of={act.what} />}
      </Confirm>
    </Panel>
  );
}

function Consequences({ of }: { of: Act["what"] }) {
  const lines: Record<Act["what"], string[]> = {
    renew: ["The next key is published beside the present one and signs nothing yet: nothing breaks.", "Put both lines on every target of the group, or run the deployment script again.", "Then make the key active. The present one stays trusted until you revoke it."],
    activate: ["New connections use this key at once.", "Targets that do not know it yet refuse core from now on: test one before.", "Targets go on accepting the former key until it is revoked and taken off them."],
    revoke: ["It is published no more and is put on the revocation list.", "Certificates it signed are worth nothing on targets that take the new lines or the list.", "This cannot be taken back."],
  };
  return <List size="sm" spacing={4}>{lines[of].map((l) => <List.Item key={l}>{l}</List.Item>)}</List>;
}
