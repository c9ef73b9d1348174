import { Button, Center, Paper, PasswordInput, Stack, Text, TextInput, Title } from "@mantine/core";
import { type FormEvent, useState } from "react";
import { type ApiError, api, asError, ask } from "~/api/client";

// SignIn asks for name and password, then for a code where the account has one.
export default function SignIn({ done, why }: { done: () => Promise<void>; why?: string }) {
  const [username, setUsername] = useState("");
  const [password, setPassword] = useState("");
  const [code, setCode] = useState<string>();
  const [error, setError] = useState<ApiError>();
  const [busy, setBusy] = useState(false);
  const submit = async (e: FormEvent) => {
    e.preventDefault();
    setBusy(true);
    setError(undefined);
    try {
      await ask(api.POST("/login", { body: { username, password, code, cookie: true } }));
      await done();
    } catch (cause) {
      const p = asError(cause);
      if (p.code === "code_needed") setCode("");
      else setError(p);
    } finally {
      setBusy(false);
    }
  };
  return (
    <Center mih="100dvh" p="md" component="main">
      <Paper withBorder p="xl" w="100%" maw={380} radius="lg">
        <form onSubmit={(e) => void submit(e)}>
          <Stack gap="md">
            <Title order={1}>Sign in</Title>
            {why && <Text size="sm" c="dimmed">{why}</Text>}
            {code === undefined ? (
              <>
                <TextInput label="User name" name="username" autoComplete="username" value={username} onChange={(e) => setUsername(e.currentTarget.value)} required data-autofocus autoFocus />
                <PasswordInput label="Password" name="password" autoComplete="current-password" value={password} onChange={(e) => setPassword(e.currentTarget.value)} required />
              </>
            ) : (
              <TextInput label="Code" description="From your authenticator, or a recovery code." name="code" autoComplete="one-time-code" inputMode="numeric" value={code} onChange={(e) => setCode(e.currentTarget.value)} required autoFocus />
            )}
            {error && <Text role="alert" size="sm" c="var(--bad)">{error.title} {error.detail}</Text>}
            <Button type="submit" loading={busy}>Sign in</Button>
          </Stack>
        </form>
      </Paper>
    </Center>
  );
}
