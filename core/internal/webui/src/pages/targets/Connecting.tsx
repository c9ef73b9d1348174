import { Anchor, Button, Group, Modal, Select, Stack, Text, Textarea } from "@mantine/core";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate } from "@tanstack/react-router";
import { type FormEvent, useCallback, useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { ErrorBox } from "~/ui/ErrorBox";
import { type Entry, follow, wayOf } from "./connect";
import { PortAddress } from "./PortAddress";

type Port = Schemas["PortaccessSession"];

// useConnect starts a use of a target and keeps what has to be asked first.
export function useConnect() {
  const navigate = useNavigate();
  const { me } = useSession();
  const [asking, setAsking] = useState<Entry>();
  const go = useCallback(
    (e: Entry) => follow(e, (href) => void navigate({ href })),
    [navigate],
  );
  const start = useCallback(
    (e: Entry) => {
      if (wayOf(e) === "none") return;
      if (wayOf(e) === "port" || (e.need_mfa && !me.mfa)) setAsking(e);
      else go(e);
    },
    [go, me.mfa],
  );
  return { asking, start, stop: () => setAsking(undefined) };
}

export function Connecting({ state }: { state: ReturnType<typeof useConnect> }) {
  const { asking: e, stop } = state;
  return (
    <Modal opened={e !== undefined} onClose={stop} title={e && `${wayOf(e) === "port" ? "Open a port" : "Connect"} to ${e.target.name}`}>
      {e && <Ask key={e.target.id + e.account} e={e} state={state} />}
    </Modal>
  );
}

const spans = [{ value: "900", label: "15 minutes" }, { value: "3600", label: "1 hour" }, { value: "14400", label: "4 hours" }, { value: "28800", label: "8 hours" }];

function Ask({ e, state }: { e: Entry; state: ReturnType<typeof useConnect> }) {
  const { me } = useSession();
  const client = useQueryClient();
  const [reason, setReason] = useState("");
  const [span, setSpan] = useState("3600");
  const port = useMutation({
    mutationFn: () => ask(api.POST("/port-sessions", { body: { target: e.target.id, account: e.account || undefined, duration_s: Number(span), reason: reason.trim() || undefined } })) as Promise<Port>,
    onSuccess: () => client.invalidateQueries({ queryKey: ["connection"] }),
  });
  if (e.need_mfa && !me.mfa) {
    return (
      <Stack gap="sm">
        <Text size="sm">This target is open only after a sign-in with a second factor. Sign out and in again with yours; if you have none, <Anchor component={Link} to="/account">set one up in your account</Anchor> first.</Text>
        <Group justify="flex-end"><Button variant="default" onClick={state.stop}>Close</Button></Group>
      </Stack>
    );
  }
  if (port.data) return <PortAddress port={port.data} close={state.stop} />;
  const submit = (event: FormEvent) => {
    event.preventDefault();
    port.mutate();
  };
  return (
    <form onSubmit={submit}>
      <Stack gap="md">
        <Text size="sm" c="dimmed">A port of core leads to {e.target.host}:{e.target.port}, for connections from {me.source} only.</Text>
        <Select label="Open for" data={spans} value={span} onChange={(v) => setSpan(v ?? "3600")} allowDeselect={false} />
        {e.need_reason && (
          <Textarea label="Reason" description="Others see it beside the connection." value={reason} onChange={(x) => setReason(x.currentTarget.value)} required maxLength={500} autosize minRows={2} data-autofocus placeholder="For example a ticket number" />
        )}
        {port.error && <ErrorBox error={port.error} />}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={state.stop}>Cancel</Button>
          <Button type="submit" loading={port.isPending} disabled={e.need_reason && !reason.trim()}>Open port</Button>
        </Group>
      </Stack>
    </form>
  );
}
