import { Alert, Button, Group, Modal, Select, Stack, Text } from "@mantine/core";
import { IconAlertTriangle, IconCircleCheck, IconCircleDashed, IconCircleX } from "@tabler/icons-react";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { ErrorBox } from "~/ui/ErrorBox";
import { Picker } from "../parts/Picker";
import { featureWord } from "../roles/permissions";
import classes from "./Test.module.css";

const names: Record<string, string> = { user: "User", policy: "Policy", route: "Route", tunnel: "Tunnel", edge_policy: "Extender's rules", dns: "Name", tcp: "TCP", tls: "TLS", banner: "SSH banner", host_key: "Host key", login: "Login" };

// Test asks core to try: every step from the rules to the login, with its time
// and what to do about it.
export function Test({ opened, close, target }: { opened: boolean; close: () => void; target: Schemas["TargetView"] }) {
  return (
    <Modal opened={opened} onClose={close} title={`Test ${target.name}`} size="lg">
      {opened && <Body target={target} close={close} />}
    </Modal>
  );
}

function Body({ target, close }: { target: Schemas["TargetView"]; close: () => void }) {
  const { me, can } = useSession();
  const [user, setUser] = useState(me.user.id);
  const [account, setAccount] = useState<string>();
  const [want, setWant] = useState(target.kind === "ssh" ? "shell" : "forward");
  const accounts = useQuery({ queryKey: ["target", "accounts", target.id], queryFn: ({ signal }) => ask(api.GET("/targets/{id}/accounts", { params: { path: { id: target.id } }, signal })) });
  const list = (accounts.data?.items ?? []).map((a) => a.name);
  const chosen = account ?? list[0] ?? "";
  const run = useMutation({ mutationFn: () => ask(api.GET("/targets/{id}/explain", { params: { path: { id: target.id }, query: { user: user === me.user.id ? undefined : user, account: chosen || undefined, want } } })) });
  const { reset } = run;
  // biome-ignore lint: an answer to another question is no answer
  useEffect(() => reset(), [user, account, want, reset]);
  const r = run.data;
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        run.mutate();
      }}
    >
      <Stack gap="md">
        <Group grow align="flex-end">
          {can("users:view") && <Picker of="user" label="As" value={user} onChange={(id) => setUser(id || me.user.id)} initialLabel={me.user.name} />}
          {list.length > 0 && <Select label="Account" data={list} value={chosen} onChange={(a) => setAccount(a ?? undefined)} allowDeselect={false} />}
          <Select label="For" data={(target.kind === "ssh" ? ["shell", "exec", "file_transfer", "forward"] : ["forward"]).map((value) => ({ value, label: featureWord(value) }))} value={want} onChange={(w) => setWant(w ?? "shell")} allowDeselect={false} />
        </Group>
        {run.error && <ErrorBox error={run.error} />}
        {r && (
          <>
            {r.works
              ? <Alert variant="light" color="sea" icon={<IconCircleCheck size={22} />} title="It works">Every step is good.</Alert>
              : <Alert variant="light" color={r.allowed ? "yellow" : "red"} icon={<IconAlertTriangle size={22} />} title={r.allowed ? "Allowed, but it does not work" : "Not allowed"}>{r.reason && !r.allowed ? `Reason: ${r.reason.replaceAll("_", " ")}.` : "The first bad step below says why."}</Alert>}
            <ol className={classes.steps} aria-label="Steps">
              {r.stages.map((s) => (
                <li key={s.name + s.text} data-bad={!s.ok && !s.skipped ? true : undefined}>
                  {s.skipped ? <IconCircleDashed size={20} color="var(--faint)" aria-label="Skipped" /> : s.ok ? <IconCircleCheck size={20} color="var(--good)" aria-label="Good" /> : <IconCircleX size={20} color="var(--bad)" aria-label="Bad" />}
                  <div>
                    <b>{names[s.name] ?? s.name}</b>
                    <Text size="sm">{s.text}</Text>
                    {s.fix && <Text size="sm" c="dimmed">What to do: {s.fix}</Text>}
                  </div>
                  <Text size="xs" c="dimmed" className="nums">{s.skipped ? "" : s.ms < 1 ? "<1 ms" : `${Math.round(s.ms)} ms`}</Text>
                </li>
              ))}
            </ol>
          </>
        )}
        <Group justify="flex-end" gap="xs"><Button variant="default" onClick={close}>Close</Button><Button type="submit" loading={run.isPending} data-autofocus>{r ? "Test again" : "Test"}</Button></Group>
      </Stack>
    </form>
  );
}
