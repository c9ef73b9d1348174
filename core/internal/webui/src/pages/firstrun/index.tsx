import { Button, PasswordInput, Stack, Text, TextInput } from "@mantine/core";
import { type FormEvent, useState } from "react";
import { type ApiError, api, asError, ask } from "~/api/client";
import { Card } from "~/pages/signin/Card";
import { Trouble } from "~/pages/signin/Trouble";
import { fieldErrors } from "~/ui/form";

const fields = ["code", "username", "display_name", "password"] as const;

// FirstRun makes the first administrator with the code core printed.
export default function FirstRun({ done }: { done: () => Promise<void> }) {
  const [form, setForm] = useState({ code: "", username: "admin", display_name: "", password: "", again: "" });
  const [error, setError] = useState<ApiError>();
  const [busy, setBusy] = useState(false);
  const set = (name: keyof typeof form) => (e: { currentTarget: { value: string } }) => setForm({ ...form, [name]: e.currentTarget.value });
  const different = form.again !== "" && form.again !== form.password;
  const { byField, others } = fieldErrors(error, fields);
  const submit = async (e: FormEvent) => {
    e.preventDefault();
    if (form.again !== form.password) return;
    setBusy(true);
    setError(undefined);
    try {
      await ask(api.POST("/setup", { body: { code: form.code, username: form.username, display_name: form.display_name || undefined, password: form.password, cookie: true } }));
      history.replaceState(null, "", "/");
      await done();
    } catch (cause) {
      setError(asError(cause));
    } finally {
      setBusy(false);
    }
  };
  return (
    <Card title="Set up Caponier" hint="There is no administrator yet. This makes the first one.">
      <form onSubmit={(e) => void submit(e)}>
        <Stack gap="md">
          <TextInput label="Set-up code" description={<>It is in core's log. For a new one, run on the server: <code>caponier-core admin code</code></>} classNames={{ input: "mono" }} value={form.code} onChange={set("code")} error={byField["code"]} required withAsterisk={false} maxLength={32} placeholder="xxxx-xxxx-xxxx" autoComplete="off" spellCheck={false} autoFocus />
          <TextInput label="User name" name="username" autoComplete="username" autoCapitalize="none" value={form.username} onChange={set("username")} error={byField["username"] ?? byField["name"]} required withAsterisk={false} maxLength={64} />
          <TextInput label="Your name" description="Optional." autoComplete="name" value={form.display_name} onChange={set("display_name")} error={byField["display_name"]} maxLength={200} />
          <PasswordInput label="Password" description="At least 12 characters; a few words are fine." name="password" autoComplete="new-password" value={form.password} onChange={set("password")} error={byField["password"]} required withAsterisk={false} maxLength={256} />
          <PasswordInput label="Password again" autoComplete="new-password" value={form.again} onChange={set("again")} error={different ? "is not the same" : undefined} required withAsterisk={false} maxLength={256} />
          {error && error.errors.length === 0 && <Trouble error={error} />}
          {others.map((o) => <Text key={o} size="sm" c="var(--bad)" role="alert">{o}</Text>)}
          <Button type="submit" loading={busy} disabled={different}>Make the administrator</Button>
        </Stack>
      </form>
    </Card>
  );
}
