import { Alert, Button, Group, Modal, Progress, Stack, Text } from "@mantine/core";
import { IconAlertTriangle, IconShieldCheck } from "@tabler/icons-react";
import { useEffect, useState } from "react";
import { ApiError, offline, problem, type Schemas } from "~/api/client";
import { ErrorBox } from "~/ui/ErrorBox";
import { Facts } from "../parts/Panel";
import { readLines } from "./lines";

type Report = Schemas["AuditReport"];
interface Step {
  events: number;
  total: number;
  report?: Report;
}

// Verify reads the whole chain again and says what it finds, with progress.
export function Verify({ opened, close }: { opened: boolean; close: () => void }) {
  return (
    <Modal opened={opened} onClose={close} title="Verify the audit log" size="lg">
      {opened && <Run close={close} />}
    </Modal>
  );
}

function Run({ close }: { close: () => void }) {
  const [step, setStep] = useState<Step>({ events: 0, total: 0 });
  const [error, setError] = useState<unknown>();
  const [round, setRound] = useState(0);
  // biome-ignore lint: round starts it anew
  useEffect(() => {
    const stop = new AbortController();
    setError(undefined);
    setStep({ events: 0, total: 0 });
    verify(stop.signal, setStep).catch((e: unknown) => {
      if (!stop.signal.aborted) setError(e);
    });
    return () => stop.abort();
  }, [round]);
  const r = step.report;
  return (
    <Stack gap="md">
      {!r && error === undefined && (
        <>
          <Text size="sm" aria-live="polite">Looked at {step.events.toLocaleString()} of {step.total.toLocaleString()} events…</Text>
          <Progress value={step.total > 0 ? (100 * step.events) / step.total : 0} animated aria-label="Progress" />
        </>
      )}
      {error !== undefined && <ErrorBox error={error} again={() => setRound((n) => n + 1)} />}
      {r && (
        <>
          {r.ok
            ? <Alert variant="light" color="sea" icon={<IconShieldCheck size={22} />} title="The log is whole">Nothing was changed, removed or put in.</Alert>
            : <Alert variant="light" color="red" icon={<IconAlertTriangle size={22} />} title="The log does not verify" role="alert">Keep the database as it is, export the log, and find out who can write to it.</Alert>}
          <Facts rows={[
            ["Events looked at", <span key="e" className="nums">{r.events.toLocaleString()} (no. {r.first} to {r.last})</span>], ["Signed heads", <span key="h" className="nums">{r.heads.toLocaleString()}</span>], ["Signed up to", <span key="s" className="nums">no. {r.signed}</span>],
            r.pruned > 0 ? ["Removed by retention", `up to no. ${r.pruned}`] : false, r.erased > 0 ? ["Erased on request", String(r.erased)] : false,
          ]} />
          {(r.findings?.length ?? 0) > 0 && <ul>{r.findings?.map((f) => <li key={`${f.seq}${f.kind}${f.text}`}><b>No. {f.seq}</b>: {f.text}</li>)}</ul>}
        </>
      )}
      <Group justify="flex-end"><Button variant="default" onClick={close}>{r ? "Close" : "Stop"}</Button></Group>
    </Stack>
  );
}

async function verify(signal: AbortSignal, tell: (s: Step) => void): Promise<void> {
  const response = await fetch("/api/v1/audit-events/verification", { signal }).catch(() => {
    throw offline();
  });
  if (!response.ok || !response.body) throw problem(response, await response.json().catch(() => null));
  let whole = false;
  for await (const line of readLines(response.body)) {
    const s = JSON.parse(line) as Step;
    whole ||= s.report !== undefined;
    tell(s);
  }
  if (!whole) throw new ApiError(0, "cut", "The verification was broken off.", "Core could not read its log to the end; its own log says why.");
}
