import { Collapse, PasswordInput, SimpleGrid, Stack, Textarea, TextInput, UnstyledButton } from "@mantine/core";
import { useState } from "react";
import { type Login, seedProblem } from "./login";

// LoginInput asks for the credential of a web application, part by part.
export function LoginInput({ value, onChange, error }: { value: Login; onChange: (l: Login) => void; error?: string }) {
  const [more, setMore] = useState(value.token !== "" || value.certificate !== "");
  const set = (c: Partial<Login>) => onChange({ ...value, ...c });
  return (
    <Stack gap="md">
      <SimpleGrid cols={{ base: 1, xs: 2 }} spacing="md">
        <TextInput label="User name" description="The account's name when empty." value={value.username} onChange={(e) => set({ username: e.currentTarget.value })} spellCheck={false} />
        <PasswordInput label="Password" description="As the application knows it." value={value.password} onChange={(e) => set({ password: e.currentTarget.value })} autoComplete="new-password" />
      </SimpleGrid>
      <PasswordInput label="Seed of one-time codes" description="What the application shows for an authenticator: base32, or the otpauth:// address." value={value.totp} onChange={(e) => set({ totp: e.currentTarget.value })} error={seedProblem(value.totp) ?? error} autoComplete="off" />
      <UnstyledButton fz="sm" c="var(--accent)" onClick={() => setMore(!more)} aria-expanded={more}>{more ? "Fewer parts" : "Token, client certificate"}</UnstyledButton>
      <Collapse expanded={more}>
        <Stack gap="md">
          <PasswordInput label="Token" description="For bearer and header sign-ins; the password when empty." value={value.token} onChange={(e) => set({ token: e.currentTarget.value })} autoComplete="off" />
          <Textarea label="Client certificate" placeholder="-----BEGIN CERTIFICATE-----" value={value.certificate} onChange={(e) => set({ certificate: e.currentTarget.value })} autosize minRows={2} maxRows={8} classNames={{ input: "mono" }} spellCheck={false} />
          <Textarea label="Its private key" placeholder="-----BEGIN PRIVATE KEY-----" value={value.key} onChange={(e) => set({ key: e.currentTarget.value })} autosize minRows={2} maxRows={8} classNames={{ input: "mono" }} spellCheck={false} />
        </Stack>
      </Collapse>
    </Stack>
  );
}
