import { Button, Group, Loader, Stack, Text } from "@mantine/core";
import { useEffect, useRef, useState } from "react";
import { type ApiError, api, asError, ask } from "~/api/client";
import { Card } from "./Card";
import { Trouble } from "./Trouble";

interface Props {
  provider?: string; // none: from the door for certificates
  done: () => Promise<void>;
  leave: () => void;
}

// sendOn gives core what a provider sent back in the address, and takes it out
// of the address and the history at once.
export function sendOn(provider: string) {
  const q = new URLSearchParams(location.search);
  history.replaceState(null, "", location.pathname);
  const body: Record<string, string> = {};
  for (const name of ["code", "state", "iss", "error", "error_description"]) {
    const value = q.get(name);
    if (value) body[name] = value;
  }
  return ask(api.POST("/login/sso/{provider}/callback", { params: { path: { provider } }, body }));
}

// Returning ends a sign-in that led elsewhere.
export function Returning({ provider, done, leave }: Props) {
  const [error, setError] = useState<ApiError>();
  const begun = useRef(false); // what is sent on works once
  useEffect(() => {
    if (begun.current) return;
    begun.current = true;
    const finish = async () => {
      try {
        await (provider ? sendOn(provider) : ask(api.POST("/login/certificate")));
        history.replaceState(null, "", "/");
        await done();
      } catch (cause) {
        setError(asError(cause));
      }
    };
    void finish();
  }, [provider, done]);
  return (
    <Card title={error ? "That did not work" : "Signing in"}>
      {error ? (
        <Stack gap="md">
          <Trouble error={error} />
          <Button onClick={leave}>Back to sign-in</Button>
        </Stack>
      ) : (
        <Group gap="sm" role="status"><Loader size="sm" /><Text size="sm">One moment …</Text></Group>
      )}
    </Card>
  );
}
