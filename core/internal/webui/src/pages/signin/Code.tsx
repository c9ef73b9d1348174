import { Anchor, Button, Stack, Text, TextInput } from "@mantine/core";
import { type FormEvent, useState } from "react";
import type { ApiError } from "~/api/client";
import classes from "./Card.module.css";
import { Trouble } from "./Trouble";

interface Props {
  name: string;
  busy?: string;
  error?: ApiError;
  passkeys: boolean;
  byCode: (code: string) => Promise<void>;
  byPasskey: () => Promise<void>;
  back: () => void;
}

// Code asks for the second factor: six digits send themselves.
export function Code({ name, busy, error, passkeys, byCode, byPasskey, back }: Props) {
  const [code, setCode] = useState("");
  const change = (value: string) => {
    setCode(value);
    if (/^\d{6}$/.test(value.replace(/\s/g, "")) && !busy) void byCode(value);
  };
  return (
    <form
      onSubmit={(e: FormEvent) => {
        e.preventDefault();
        void byCode(code);
      }}
    >
      <Stack gap="md">
        <Text size="sm">The password of <b>{name}</b> is right. Now your second factor.</Text>
        <TextInput className={classes.code} label="Code" description="Six digits of your authenticator app, or a recovery code." name="code" autoComplete="one-time-code" inputMode="text" value={code} onChange={(e) => change(e.currentTarget.value)} required withAsterisk={false} maxLength={32} autoFocus />
        <Trouble error={error} />
        <Button type="submit" loading={busy === "password"} disabled={!!busy && busy !== "password"}>Continue</Button>
        {passkeys && <Button variant="default" loading={busy === "passkey"} onClick={() => void byPasskey()}>Use a passkey or security key</Button>}
        <Text size="sm" ta="center"><Anchor component="button" type="button" onClick={back}>Back</Anchor></Text>
      </Stack>
    </form>
  );
}
