import { Button, Group, Skeleton, Text } from "@mantine/core";
import { IconCertificate, IconPlus } from "@tabler/icons-react";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { Empty } from "~/ui/Empty";
import { ErrorBox } from "~/ui/ErrorBox";
import { StateBadge } from "~/ui/StateBadge";
import { Ago, Time } from "~/ui/Time";
import { Danger } from "../parts/Danger";
import { Panel } from "../parts/Panel";
import table from "../parts/Table.module.css";
import { AuthorityForm } from "./AuthorityForm";
import { ListForm } from "./ListForm";
import { type Authority, fieldWords, listState, tag } from "./words";

const topic = "certificate_anchor";
type Act = { what: "add" } | { what: "edit" | "list" | "delete"; a: Authority };

// Authorities lists whose client certificates sign people in.
export function Authorities() {
  const { can } = useSession();
  const manage = can("settings:manage");
  const client = useQueryClient();
  const [act, setAct] = useState<Act>();
  const close = () => setAct(undefined);
  const q = useQuery({ queryKey: [topic, "list"], queryFn: ({ signal }) => ask(api.GET("/certificate-anchors", { signal })) });
  const again = () => client.invalidateQueries({ queryKey: [topic] });
  const turn = useMutation({
    mutationFn: (a: Authority) => ask(api.PUT("/certificate-anchors/{id}", { params: { path: { id: a.id }, header: tag(a.version) }, body: { name: a.name, enabled: !a.enabled, bundle_pem: a.bundle_pem, config: a.config } })),
    onSettled: again,
  });
  const list = q.data?.items ?? [];
  const a = act && "a" in act ? act.a : undefined;
  return (
    <Panel title="Client certificates" hint="Authorities whose certificates or cards sign people in. The port for it is open only while one is on." actions={manage && <Button size="xs" leftSection={<IconPlus size={16} />} onClick={() => setAct({ what: "add" })}>Trust an authority</Button>}>
      {q.error && <ErrorBox error={q.error} again={() => void q.refetch()} />}
      {turn.error && <ErrorBox error={turn.error} />}
      {q.isPending && <Skeleton height={120} />}
      {q.data && list.length === 0 && <Empty icon={IconCertificate} title="No authorities yet">Trust one to let people in with the certificates it gave them.</Empty>}
      {list.length > 0 && (
        <div className={table.scroll} tabIndex={0} role="region" aria-label="Authorities for client certificates">
          <table className={table.plain}>
            <thead><tr><th scope="col">Authority</th><th scope="col">State</th><th scope="col">Names the user</th><th scope="col">Revocation list</th>{manage && <th scope="col" data-end>Actions</th>}</tr></thead>
            <tbody>
              {list.map((x) => {
                const crl = listState(x, Date.now());
                return (
                  <tr key={x.id}>
                    <td><b>{x.name}</b>{x.subjects?.map((s) => <Text key={s} size="xs" c="dimmed">{s}</Text>)}<Text size="xs" c="dimmed">until <Time at={x.not_after} /></Text></td>
                    <td><StateBadge state={x.enabled ? "active" : "disabled"} label={x.enabled ? "On" : "Off"} />{x.config.mfa && <Text size="xs" c="dimmed">two factors</Text>}</td>
                    <td>{fieldWords[x.config.field]}{x.config.pattern && <Text size="xs" c="dimmed" className="mono">{x.config.pattern}</Text>}<Text size="xs" c="dimmed">is the {x.config.lookup === "email" ? "mail address" : "user name"}</Text></td>
                    <td><StateBadge state={crl.tone} tone={crl.tone} label={crl.text} />{crl.until && <Text size="xs" c="dimmed">current until <Time at={crl.until} /></Text>}{x.crl_at && <Text size="xs" c="dimmed">loaded <Ago at={x.crl_at} />{x.config.crl_url ? ", fetched hourly" : ""}</Text>}</td>
                    {manage && (
                      <td data-end>
                        <Group gap={6} justify="flex-end" wrap="nowrap">
                          <Button size="compact-xs" variant="default" onClick={() => setAct({ what: "list", a: x })} aria-label={`Load list: ${x.name}`}>Load list</Button>
                          <Button size="compact-xs" variant="default" onClick={() => setAct({ what: "edit", a: x })} aria-label={`Edit ${x.name}`}>Edit</Button>
                          <Button size="compact-xs" variant="default" onClick={() => turn.mutate(x)} loading={turn.isPending && turn.variables.id === x.id} aria-label={`${x.enabled ? "Disable" : "Enable"} ${x.name}`}>{x.enabled ? "Disable" : "Enable"}</Button>
                          <Button size="compact-xs" variant="default" onClick={() => setAct({ what: "delete", a: x })} aria-label={`Delete ${x.name}`}>Delete</Button>
                        </Group>
                      </td>
                    )}
                  </tr>
                );
              })}
            </tbody>
          </table>
        </div>
      )}
      <AuthorityForm opened={act?.what === "add" || act?.what === "edit"} close={close} authority={a} />
      <ListForm opened={act?.what === "list"} close={close} authority={a} />
      <Danger
        opened={act?.what === "delete"} close={close} title="Trust this authority no longer?" name={a?.name ?? ""} action="Delete" topics={[topic]}
        run={async () => a && ask(api.DELETE("/certificate-anchors/{id}", { params: { path: { id: a.id }, header: tag(a.version) } }))}
      >
        Its certificates sign nobody in any more.
      </Danger>
    </Panel>
  );
}
