import { Button, Group, Skeleton, Text } from "@mantine/core";
import { IconFingerprint, IconPlus } from "@tabler/icons-react";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { CopyText } from "~/ui/CopyText";
import { Empty } from "~/ui/Empty";
import { ErrorBox } from "~/ui/ErrorBox";
import { StateBadge } from "~/ui/StateBadge";
import { Danger } from "../parts/Danger";
import { Panel } from "../parts/Panel";
import table from "../parts/Table.module.css";
import { ProviderForm } from "./ProviderForm";
import { ProviderTest } from "./ProviderTest";
import { linkWords, type Provider, tag } from "./words";

const topic = "sso_provider";
type Act = { what: "add" } | { what: "edit" | "test" | "delete"; p: Provider };

// Providers lists the OpenID Connect providers people come in by.
export function Providers() {
  const { can } = useSession();
  const manage = can("settings:manage");
  const client = useQueryClient();
  const [act, setAct] = useState<Act>();
  const close = () => setAct(undefined);
  const q = useQuery({ queryKey: [topic, "list"], queryFn: ({ signal }) => ask(api.GET("/sso-providers", { signal })) });
  const again = () => client.invalidateQueries({ queryKey: [topic] });
  const turn = useMutation({
    mutationFn: (p: Provider) => ask(api.PUT("/sso-providers/{id}", { params: { path: { id: p.id }, header: tag(p.version) }, body: { name: p.name, enabled: !p.enabled, config: p.config } })),
    onSettled: again,
  });
  const list = q.data?.items ?? [];
  const p = act && "p" in act ? act.p : undefined;
  return (
    <Panel title="Single sign-on" hint="OpenID Connect providers. Each has its button on the sign-in page." actions={manage && <Button size="xs" leftSection={<IconPlus size={16} />} onClick={() => setAct({ what: "add" })}>Add a provider</Button>}>
      {q.error && <ErrorBox error={q.error} again={() => void q.refetch()} />}
      {turn.error && <ErrorBox error={turn.error} />}
      {q.isPending && <Skeleton height={120} />}
      {q.data && list.length === 0 && <Empty icon={IconFingerprint} title="No providers yet">People sign in with the passwords and passkeys they have here.</Empty>}
      {list.length > 0 && (
        <div className={table.scroll} tabIndex={0} role="region" aria-label="Single sign-on providers">
          <table className={table.plain}>
            <thead><tr><th scope="col">Provider</th><th scope="col">State</th><th scope="col">New people</th><th scope="col">Redirect URI</th>{manage && <th scope="col" data-end>Actions</th>}</tr></thead>
            <tbody>
              {list.map((x) => (
                <tr key={x.id}>
                  <td><b>{x.config.label}</b><Text size="xs" c="dimmed">{x.name}, {x.config.issuer}</Text></td>
                  <td><StateBadge state={x.enabled ? "active" : "disabled"} label={x.enabled ? "On" : "Off"} /><Text size="xs" c="dimmed">{x.has_secret ? "client secret kept" : "public client"}</Text></td>
                  <td>{x.config.create ? "Get an account" : "Need an account"}<Text size="xs" c="dimmed">Linked: {linkWords[x.config.link ?? "none"].toLowerCase()}</Text></td>
                  <td><CopyText text={x.callback} label="Copy the redirect URI" /></td>
                  {manage && (
                    <td data-end>
                      <Group gap={6} justify="flex-end" wrap="nowrap">
                        <Button size="compact-xs" variant="default" onClick={() => setAct({ what: "test", p: x })} aria-label={`Test ${x.name}`}>Test</Button>
                        <Button size="compact-xs" variant="default" onClick={() => setAct({ what: "edit", p: x })} aria-label={`Edit ${x.name}`}>Edit</Button>
                        <Button size="compact-xs" variant="default" onClick={() => turn.mutate(x)} loading={turn.isPending && turn.variables.id === x.id} aria-label={`${x.enabled ? "Disable" : "Enable"} ${x.name}`}>{x.enabled ? "Disable" : "Enable"}</Button>
                        <Button size="compact-xs" variant="default" onClick={() => setAct({ what: "delete", p: x })} aria-label={`Delete ${x.name}`}>Delete</Button>
                      </Group>
                    </td>
                  )}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <ProviderForm opened={act?.what === "add" || act?.what === "edit"} close={close} provider={p} done={(made) => setAct({ what: "test", p: made })} />
      <ProviderTest opened={act?.what === "test"} close={close} provider={p} />
      <Danger
        opened={act?.what === "delete"} close={close} title="Delete this provider?" name={p?.name ?? ""} action="Delete" topics={[topic, "user"]}
        run={async () => p && ask(api.DELETE("/sso-providers/{id}", { params: { path: { id: p.id }, header: tag(p.version) } }))}
      >
        Every link of a user to it goes, too. Who has neither password nor passkey here cannot sign in any more.
      </Danger>
    </Panel>
  );
}
