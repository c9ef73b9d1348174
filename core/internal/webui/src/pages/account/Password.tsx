import { Button, Group, PasswordInput, Stack, TextInput } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { type FormEvent, useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { ErrorBox } from "~/ui/ErrorBox";
import { fieldErrors } from "~/ui/form";
import { useRun } from "~/ui/useRun";
import { Part } from "./Part";

const empty = { current: "", password: "", again: "", code: "" };

// Password changes one's password; whoever has none gets no form.
export function Password() {
  const { me } = useSession();
  const [form, setForm] = useState(empty);
  const [open, setOpen] = useState(false);
  const { busy, error, run } = useRun();
  const set = (name: keyof typeof empty) => (e: { currentTarget: { value: string } }) => setForm({ ...form, [name]: e.currentTarget.value });
  const different = form.again !== "" && form.again !== form.password;
  const { byField } = fieldErrors(error, ["password"]);
  const submit = async (e: FormEvent) => {
    e.preventDefault();
    if (form.password !== form.again) return;
    await run(async () => {
      await ask(api.PUT("/users/{id}/password", { params: { path: { id: "me" } }, body: { password: form.password, current: form.current, code: form.code || undefined } }));
      setForm(empty);
      setOpen(false);
      notifications.show({ message: "Your password is changed. Everything else that was signed in as you is signed out." });
    });
  };
  if (!me.user.has_password) return <Part title="Password" hint="You have none: you sign in another way." />;
  return (
    <Part title="Password" action={!open && <Button variant="default" onClick={() => setOpen(true)}>Change password</Button>}>
      {open && (
        <form onSubmit={(e) => void submit(e)}>
          <Stack gap="md" maw={420}>
            <input type="text" name="username" autoComplete="username" value={me.user.name} readOnly hidden />
            <PasswordInput label="Present password" autoComplete="current-password" value={form.current} onChange={set("current")} required withAsterisk={false} autoFocus />
            {me.user.totp && <TextInput label="Code" description="Of your authenticator app, or a recovery code." autoComplete="one-time-code" value={form.code} onChange={set("code")} required withAsterisk={false} maxLength={32} />}
            <PasswordInput label="New password" autoComplete="new-password" value={form.password} onChange={set("password")} error={byField["password"]} required withAsterisk={false} />
            <PasswordInput label="New password again" autoComplete="new-password" value={form.again} onChange={set("again")} error={different ? "is not the same" : undefined} required withAsterisk={false} />
            {error !== undefined && !byField["password"] && <ErrorBox error={error} />}
            <Group gap="xs">
              <Button type="submit" loading={busy} disabled={different}>Change password</Button>
              <Button variant="default" onClick={() => setOpen(false)}>Cancel</Button>
            </Group>
          </Stack>
        </form>
      )}
    </Part>
  );
}
