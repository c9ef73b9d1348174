import { Anchor, Button, PasswordInput, Stack, Text, TextInput } from "@mantine/core";
import { type FormEvent, type KeyboardEvent, useCallback, useEffect, useRef, useState } from "react";
import { ApiError, api, asError, ask } from "~/api/client";
import { assert, available, explain, offersInField } from "~/app/webauthn";
import classes from "./Card.module.css";
import { Code } from "./Code";
import { Trouble } from "./Trouble";
import type { Options } from "./index";

interface Props {
  options?: Options;
  done: () => Promise<void>;
  trouble?: ApiError;
}

// Form signs in: by password and, where the account has one, a second factor;
// by passkey, from the button or the browser's own list in the name field; by
// single sign-on; by certificate.
export function Form({ options, done, trouble }: Props) {
  const [username, setUsername] = useState("");
  const [password, setPassword] = useState("");
  const [asked, setAsked] = useState(false);
  const [busy, setBusy] = useState<string>();
  const [error, setError] = useState<ApiError | undefined>(trouble);
  const [caps, setCaps] = useState(false);
  const passkeys = (options?.passkeys ?? false) && available();
  const inField = useInField(passkeys && !asked, done);

  const attempt = async (what: string, run: () => Promise<unknown>) => {
    setBusy(what);
    setError(undefined);
    try {
      await run();
    } catch (cause) {
      const p = cause instanceof DOMException ? new ApiError(-1, "passkey", explain(cause)) : asError(cause);
      if (p.code === "code_needed") setAsked(true);
      else setError(p);
    } finally {
      setBusy(undefined);
    }
  };
  const byPassword = (code?: string) =>
    attempt("password", async () => {
      await ask(api.POST("/login", { body: { username, password, code, cookie: true } }));
      await done();
    });
  const byPasskey = (second: boolean) =>
    attempt("passkey", async () => {
      inField.stop();
      const begun = await ask(api.POST("/login/passkey/begin", { body: second ? { username, password } : {} }));
      const credential = await assert(begun.options);
      await ask(api.POST("/login/passkey", { body: { state: begun.state, credential, cookie: true } }));
      await done();
    });
  const byProvider = (name: string) =>
    attempt(name, async () => {
      const { url } = await ask(api.POST("/login/sso/{provider}", { params: { path: { provider: name } } }));
      location.assign(url);
      await new Promise(() => undefined); // the page goes
    });

  if (asked) {
    const again = () => {
      setAsked(false);
      setPassword("");
      setError(undefined);
    };
    return <Code name={username} busy={busy} error={error} passkeys={passkeys} byCode={byPassword} byPasskey={() => byPasskey(true)} back={again} />;
  }
  const watchCaps = (e: KeyboardEvent) => setCaps(e.getModifierState("CapsLock"));
  const ways = options?.sso ?? [];
  return (
    <Stack gap="md">
      {ways.map((w) => (
        <Button key={w.name} variant="default" loading={busy === w.name} disabled={!!busy && busy !== w.name} onClick={() => void byProvider(w.name)}>Continue with {w.label}</Button>
      ))}
      {ways.length > 0 && <div className={classes.line}>or</div>}
      <form
        onSubmit={(e: FormEvent) => {
          e.preventDefault();
          void byPassword();
        }}
      >
        <Stack gap="md">
          <TextInput label="User name" name="username" autoComplete={passkeys ? "username webauthn" : "username"} autoCapitalize="none" spellCheck={false} value={username} onChange={(e) => setUsername(e.currentTarget.value)} required withAsterisk={false} maxLength={64} autoFocus />
          <div>
            <PasswordInput label="Password" name="password" autoComplete="current-password" value={password} onChange={(e) => setPassword(e.currentTarget.value)} onKeyDown={watchCaps} onKeyUp={watchCaps} onBlur={() => setCaps(false)} required withAsterisk={false} maxLength={256} />
            <div role="status">{caps && <p className={classes.hint}>Caps Lock is on.</p>}</div>
          </div>
          <Trouble error={error} />
          <Button type="submit" loading={busy === "password"} disabled={(!!busy && busy !== "password") || (error?.retryAfter ?? 0) > 0}>Sign in</Button>
        </Stack>
      </form>
      {passkeys && (
        <Button variant="default" loading={busy === "passkey"} disabled={!!busy && busy !== "passkey"} onClick={() => void byPasskey(false)}>Sign in with a passkey</Button>
      )}
      {options?.certificate_url && (
        <Text size="sm" ta="center"><Anchor href={options.certificate_url}>Sign in with a certificate or card</Anchor></Text>
      )}
    </Stack>
  );
}

// useInField lets the browser offer passkeys in the user name field, and asks
// for a new challenge before the old one is stale.
function useInField(wanted: boolean, done: () => Promise<void>): { stop: () => void } {
  const current = useRef<AbortController>(undefined);
  const stop = useCallback(() => current.current?.abort(), []);
  const finish = useRef(done);
  finish.current = done;
  useEffect(() => {
    if (!wanted) return;
    const control = new AbortController();
    current.current = control;
    const offer = async () => {
      if (!(await offersInField()) || control.signal.aborted) return;
      while (!control.signal.aborted) {
        const round = new AbortController();
        const end = () => round.abort();
        control.signal.addEventListener("abort", end, { once: true });
        const timer = setTimeout(end, 4 * 60_000);
        try {
          const begun = await ask(api.POST("/login/passkey/begin", { body: {}, signal: control.signal }));
          const credential = await assert(begun.options, { signal: round.signal, inField: true });
          await ask(api.POST("/login/passkey", { body: { state: begun.state, credential, cookie: true } }));
          await finish.current();
          return;
        } catch (cause) {
          // A round that timed out begins anew; anything else leaves the button.
          if (!(cause instanceof DOMException && cause.name === "AbortError")) return;
        } finally {
          clearTimeout(timer);
          control.signal.removeEventListener("abort", end);
        }
      }
    };
    void offer();
    return () => control.abort();
  }, [wanted]);
  return { stop };
}
