import { Button, Skeleton, Text, VisuallyHidden } from "@mantine/core";
import { IconPlus } from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { Confirm } from "~/ui/Confirm";
import { ErrorBox } from "~/ui/ErrorBox";
import { Time } from "~/ui/Time";
import { FormModal } from "../parts/FormModal";
import { Panel } from "../parts/Panel";
import classes from "../parts/Table.module.css";
import { PemInput } from "../ways/PemInput";

type Anchor = Schemas["GroupAnchor"];

// Anchors are what TLS of the group's web targets is verified against.
export function Anchors({ id, manage }: { id: string; manage: boolean }) {
  const client = useQueryClient();
  const [adding, setAdding] = useState(false);
  const [removing, setRemoving] = useState<Anchor>();
  const q = useQuery({ queryKey: ["group", "anchors", id], queryFn: ({ signal }) => ask(api.GET("/access-groups/{id}/anchors", { params: { path: { id } }, signal })) });
  const items = q.data?.items ?? [];
  return (
    <Panel
      title="Trust anchors" hint="Authorities that certificates of the group's web targets are checked against, besides those everybody trusts."
      actions={manage && <Button size="xs" variant="default" leftSection={<IconPlus size={16} />} onClick={() => setAdding(true)}>Add certificates</Button>}
    >
      {q.error ? <ErrorBox error={q.error} again={() => void q.refetch()} /> : q.isPending ? <Skeleton height={60} /> : items.length === 0 ? <Text size="sm" c="dimmed">None.</Text> : (
        <div className={classes.scroll} tabIndex={0} role="region" aria-label="Certificates">
          <table className={classes.plain}>
            <thead><tr><th scope="col">Subject</th><th scope="col">Until</th><th scope="col">SHA-256</th><th scope="col" data-end><VisuallyHidden>Actions</VisuallyHidden></th></tr></thead>
            <tbody>
              {items.map((a) => (
                <tr key={a.id}>
                  <td>{a.subject}</td>
                  <td><Time at={a.not_after} /></td>
                  <td className="mono" title={a.fingerprint}>{a.fingerprint.slice(0, 16)}…</td>
                  <td data-end>{manage && <Button size="compact-xs" variant="default" onClick={() => setRemoving(a)} aria-label={`Remove ${a.subject}`}>Remove</Button>}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <FormModal
        opened={adding} close={() => setAdding(false)} title="Add trust anchors" topics={["group"]} action="Add" size="lg" initial={() => ({ certificates: "" })}
        save={(body) => ask(api.POST("/access-groups/{id}/anchors", { params: { path: { id } }, body }))}
      >
        {({ v, set, at }) => <PemInput label="Certificates" description="One or more, in PEM." placeholder="-----BEGIN CERTIFICATE-----" value={v.certificates} onChange={(certificates) => set({ certificates })} error={at("certificates")} />}
      </FormModal>
      <Confirm
        opened={removing !== undefined} close={() => setRemoving(undefined)} title={`Trust ${removing?.subject} no more?`} action="Remove" danger
        run={async () => {
          if (removing) await ask(api.DELETE("/access-groups/{id}/anchors/{anchor}", { params: { path: { id, anchor: removing.id } } }));
          await client.invalidateQueries({ queryKey: ["group", "anchors", id] });
        }}
      >
        New web sessions to targets whose certificates it issued are refused.
      </Confirm>
    </Panel>
  );
}
