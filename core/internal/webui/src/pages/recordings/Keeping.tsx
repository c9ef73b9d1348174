import { Alert, Button, Select, Stack, Text } from "@mantine/core";
import { IconShieldCheck, IconShieldX } from "@tabler/icons-react";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { bytes } from "~/ui/Bytes";
import { CopyText } from "~/ui/CopyText";
import { ErrorBox } from "~/ui/ErrorBox";
import { Ago, Time } from "~/ui/Time";
import classes from "./recordings.module.css";
import { clock, type Recording, states } from "./words";

// Keeping tells how long a recording is kept, whether it is whole, and who
// else may see it.
export function Keeping({ r }: { r: Recording }) {
  const { can } = useSession();
  const client = useQueryClient();
  const verify = useMutation({
    mutationFn: () => ask(api.POST("/recordings/{id}/verify", { params: { path: { id: r.id } } })),
    onSuccess: () => client.invalidateQueries({ queryKey: ["recording", "one", r.id] }),
  });
  const good = verify.data && verify.data.status === "complete";
  return (
    <Stack gap="md" mt="md">
      <dl className={classes.facts}>
        <dt>State</dt><dd>{states[r.status].text}</dd>
        <dt>Kept until</dt><dd><Time at={r.expires_at} /> (<Ago at={r.expires_at} />)</dd>
        <dt>Last checked</dt><dd><Ago at={r.verified_at} /></dd>
        <dt>Size</dt><dd>{bytes(r.size)} in {r.blocks.toLocaleString()} sealed blocks</dd>
        {r.sha256 && <><dt>SHA-256</dt><dd><CopyText text={r.sha256} label="Copy the hash" /></dd></>}
      </dl>
      {r.status !== "expired" && r.status !== "recording" && <Button variant="default" loading={verify.isPending} onClick={() => verify.mutate()}>Check every block now</Button>}
      {verify.error && <ErrorBox error={verify.error} />}
      {verify.data && <Alert variant="light" color={good ? "sea" : "red"} icon={good ? <IconShieldCheck size={20} /> : <IconShieldX size={20} />} title={states[verify.data.status as Recording["status"]]?.label ?? verify.data.status}>{verify.data.text} ({clock(verify.data.seconds)})</Alert>}
      {can("recordings:view") && can("users:view") && <Shares id={r.id} />}
    </Stack>
  );
}

function Shares({ id }: { id: string }) {
  const client = useQueryClient();
  const [role, setRole] = useState<string | null>(null);
  const shares = useQuery({ queryKey: ["recording", "shares", id], queryFn: ({ signal }) => ask(api.GET("/recordings/{id}/roles", { params: { path: { id } }, signal })) });
  const roles = useQuery({ queryKey: ["role", "names"], queryFn: ({ signal }) => ask(api.GET("/roles", { params: { query: { limit: 500 } }, signal })) });
  const change = useMutation({
    mutationFn: ({ role, on }: { role: string; on: boolean }) => ask(on ? api.PUT("/recordings/{id}/roles/{role}", { params: { path: { id, role } } }) : api.DELETE("/recordings/{id}/roles/{role}", { params: { path: { id, role } } })),
    onSettled: () => client.invalidateQueries({ queryKey: ["recording", "shares", id] }),
  });
  const name = (roleID: string) => roles.data?.items?.find((x) => x.id === roleID)?.name ?? roleID;
  const shared = shares.data?.items ?? [];
  return (
    <div>
      <Text fw={600} size="sm" mb={4}>Also visible to</Text>
      {shared.map((s) => (
        <div key={s.role_id} className={classes.share}><span>{name(s.role_id)}</span><Button size="compact-xs" variant="subtle" color="gray" onClick={() => change.mutate({ role: s.role_id, on: false })}>Take back</Button></div>
      ))}
      <Select
        aria-label="Share with a role" placeholder="Share with a role" searchable value={role} data={(roles.data?.items ?? []).filter((x) => !shared.some((s) => s.role_id === x.id)).map((x) => ({ value: x.id, label: x.name }))}
        onChange={(v) => {
          setRole(null);
          if (v) change.mutate({ role: v, on: true });
        }}
      />
      {change.error && <ErrorBox error={change.error} />}
    </div>
  );
}
