import { Alert, Button, Group, Modal, Stack, Text } from "@mantine/core";
import { IconAlertTriangle, IconCircleCheck, IconCircleX } from "@tabler/icons-react";
import { useMutation } from "@tanstack/react-query";
import { useEffect } from "react";
import { api, ask } from "~/api/client";
import { ErrorBox } from "~/ui/ErrorBox";
import steps from "../targets/Test.module.css";
import type { Provider } from "./words";

// ProviderTest goes through what a sign-in needs of a provider, and says what
// to do about the step that fails.
export function ProviderTest({ opened, close, provider }: { opened: boolean; close: () => void; provider?: Provider }) {
  return (
    <Modal opened={opened} onClose={close} title={`Test ${provider?.config.label ?? ""}`} size="lg">
      {opened && provider && <Body id={provider.id} close={close} />}
    </Modal>
  );
}

function Body({ id, close }: { id: string; close: () => void }) {
  const run = useMutation({ mutationFn: () => ask(api.POST("/sso-providers/{id}/test", { params: { path: { id } } })) });
  const { mutate } = run;
  useEffect(() => mutate(), [mutate]);
  const r = run.data;
  return (
    <Stack gap="md">
      <div role="status">
        {run.isPending && <Text size="sm" c="dimmed">Asking the provider…</Text>}
        {!run.isPending && r && (r.ok
          ? <Alert variant="light" color="sea" icon={<IconCircleCheck size={22} />} title="It works">Every step is good. Nobody was signed in for this.</Alert>
          : <Alert variant="light" color="red" icon={<IconAlertTriangle size={22} />} title="It does not work yet">The last step below says why, and what to do.</Alert>)}
      </div>
      {run.error && <ErrorBox error={run.error} />}
      {r && (
        <ol className={steps.steps} aria-label="Steps">
          {(r.steps ?? []).map((s) => (
            <li key={s.name} data-bad={s.ok ? undefined : true}>
              {s.ok ? <IconCircleCheck size={20} color="var(--good)" aria-label="Good" /> : <IconCircleX size={20} color="var(--bad)" aria-label="Bad" />}
              <div style={{ overflowWrap: "anywhere" }}>
                <b>{s.name.charAt(0).toUpperCase() + s.name.slice(1).replaceAll("_", " ")}</b>
                <Text size="sm">{s.text}</Text>
                {s.fix && <Text size="sm" c="dimmed">What to do: {s.fix}</Text>}
              </div>
              <Text size="xs" c="dimmed" className="nums">{s.ms < 1 ? "<1 ms" : `${Math.round(s.ms)} ms`}</Text>
            </li>
          ))}
        </ol>
      )}
      <Group justify="flex-end" gap="xs"><Button variant="default" onClick={close}>Close</Button><Button onClick={() => mutate()} loading={run.isPending}>Test again</Button></Group>
    </Stack>
  );
}
