import { Button, Group, Modal, Stack, Text, TextInput } from "@mantine/core";
import { type FormEvent, useMemo, useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { CopyText } from "~/ui/CopyText";
import { ErrorBox } from "~/ui/ErrorBox";
import { StateBadge } from "~/ui/StateBadge";
import { useRun } from "~/ui/useRun";
import classes from "./account.module.css";
import { Codes, Part } from "./Part";
import { Prove } from "./Prove";
import { encode } from "./qr";

const own = { params: { path: { id: "me" } } };

// SecondFactor sets the authenticator app up, and renews recovery codes.
export function SecondFactor() {
  const { me, refresh } = useSession();
  const [ask1, setAsk] = useState<"begin" | "remove" | "codes">();
  const [setup, setSetup] = useState<{ secret: string; url: string }>();
  const [codes, setCodes] = useState<readonly string[]>();
  const on = me.user.totp;
  const protectedBy = on || me.user.passkeys > 0;
  const close = () => setAsk(undefined);
  return (
    <Part
      title="Authenticator app" hint={on ? `Your password alone does not sign in. ${me.recovery_codes_left} recovery codes are left.` : "A second factor: six digits from an app on your phone."}
      action={<StateBadge state={on ? "on" : "off"} tone={on ? "good" : "off"} />}
    >
      <Group gap="xs">
        <Button variant="default" onClick={() => setAsk("begin")}>{on ? "Set up another app" : "Set up"}</Button>
        {protectedBy && <Button variant="default" onClick={() => setAsk("codes")}>New recovery codes</Button>}
        {on && <Button variant="subtle" color="red" onClick={() => setAsk("remove")}>Switch off</Button>}
      </Group>
      <Prove opened={ask1 === "begin"} close={close} title="Set up an authenticator app" action="Continue" run={async (body) => setSetup(await ask(api.POST("/users/{id}/totp", { ...own, body })))} />
      <Prove opened={ask1 === "codes"} close={close} title="New recovery codes" action="Make new codes" run={async (body) => setCodes((await ask(api.POST("/users/{id}/recovery-codes", { ...own, body }))).recovery_codes ?? [])}>
        The codes you have now stop working.
      </Prove>
      <Prove
        opened={ask1 === "remove"} close={close} title="Switch the authenticator app off" action="Switch off" danger
        run={async (body) => {
          await ask(api.POST("/users/{id}/totp/remove", { ...own, body }));
          await refresh();
        }}
      >
        You will be signed out everywhere, here too.
      </Prove>
      <Modal opened={!!setup} onClose={() => setSetup(undefined)} title="Set up an authenticator app">
        {setup && (
          <Confirm
            {...setup}
            run={async (code) => {
              const made = await ask(api.POST("/users/{id}/totp/confirm", { ...own, body: { code } }));
              setSetup(undefined);
              setCodes(made.recovery_codes ?? []);
              await refresh();
            }}
          />
        )}
      </Modal>
      <Modal
        opened={!!codes} title="Recovery codes" closeOnClickOutside={false}
        onClose={() => {
          setCodes(undefined);
          void refresh();
        }}
      >
        <Stack gap="md">
          <Codes codes={codes ?? []} />
        </Stack>
      </Modal>
    </Part>
  );
}

function Confirm({ secret, url, run }: { secret: string; url: string; run: (code: string) => Promise<void> }) {
  const [code, setCode] = useState("");
  const { busy, error, run: go } = useRun();
  const submit = (e: FormEvent) => {
    e.preventDefault();
    return go(() => run(code));
  };
  return (
    <form onSubmit={(e) => void submit(e)}>
      <Stack gap="md">
        <Text size="sm">Scan this with your app, then enter the six digits it shows.</Text>
        <QR text={url} />
        <details>
          <summary>It cannot be scanned?</summary>
          <Text size="sm" mt="xs">Type this key into the app:</Text>
          <CopyText text={secret} block />
        </details>
        <TextInput label="Code" autoComplete="one-time-code" inputMode="numeric" value={code} onChange={(e) => setCode(e.currentTarget.value)} required withAsterisk={false} maxLength={8} data-autofocus />
        {error !== undefined && <ErrorBox error={error} />}
        <Group justify="flex-end"><Button type="submit" loading={busy}>Switch on</Button></Group>
      </Stack>
    </form>
  );
}

// QR draws the code in the page: the secret goes nowhere else.
function QR({ text }: { text: string }) {
  const { size, path } = useMemo(() => {
    const m = encode(text);
    return { size: m.length, path: m.map((row, y) => row.map((dark, x) => (dark ? `M${x} ${y}h1v1h-1z` : "")).join("")).join("") };
  }, [text]);
  return (
    <svg className={classes.qr} viewBox={`-1 -1 ${size + 2} ${size + 2}`} role="img" aria-label="QR code with the key for your authenticator app" shapeRendering="crispEdges">
      <path d={path} fill="#000" />
    </svg>
  );
}
