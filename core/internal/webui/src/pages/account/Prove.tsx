import { Button, Group, Modal, PasswordInput, Stack, Text, TextInput } from "@mantine/core";
import { type FormEvent, type ReactNode, useState } from "react";
import { useSession } from "~/app/session";
import { ErrorBox } from "~/ui/ErrorBox";
import { useRun } from "~/ui/useRun";

export interface Proof {
  password: string;
  code?: string;
}

interface Props {
  opened: boolean;
  close: () => void;
  title: string;
  action: string;
  danger?: boolean;
  children?: ReactNode;
  run: (proof: Proof) => Promise<unknown>;
}

// Prove asks again for what proves who one is, before changing it: a session
// left open must not be enough.
export function Prove(p: Props) {
  return <Modal opened={p.opened} onClose={p.close} title={p.title}>{p.opened && <Body {...p} />}</Modal>;
}

function Body({ close, action, danger, children, run }: Props) {
  const { me } = useSession();
  const [password, setPassword] = useState("");
  const [code, setCode] = useState("");
  const { busy, error, run: go } = useRun();
  const submit = (e: FormEvent) => {
    e.preventDefault();
    return go(async () => {
      await run({ password, code: code || undefined });
      close();
    });
  };
  return (
    <form onSubmit={(e) => void submit(e)}>
      <Stack gap="md">
        {children && <Text size="sm" component="div">{children}</Text>}
        {me.user.has_password ? (
          <PasswordInput label="Your password" autoComplete="current-password" value={password} onChange={(e) => setPassword(e.currentTarget.value)} required withAsterisk={false} data-autofocus />
        ) : (
          <Text size="sm" c="dimmed">You have no password: this works within ten minutes of signing in.</Text>
        )}
        {me.user.has_password && me.user.totp && <TextInput label="Code" description="Of your authenticator app, or a recovery code." autoComplete="one-time-code" value={code} onChange={(e) => setCode(e.currentTarget.value)} required withAsterisk={false} maxLength={32} />}
        {error !== undefined && <ErrorBox error={error} />}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={close}>Cancel</Button>
          <Button type="submit" color={danger ? "red" : undefined} loading={busy}>{action}</Button>
        </Group>
      </Stack>
    </form>
  );
}
