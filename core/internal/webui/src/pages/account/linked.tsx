import { Button, Stack } from "@mantine/core";
import { useNavigate, useParams } from "@tanstack/react-router";
import { useEffect, useRef, useState } from "react";
import { type ApiError, asError } from "~/api/client";
import { useSession } from "~/app/session";
import { Loading } from "~/app/Unreachable";
import { Card } from "~/pages/signin/Card";
import { sendOn } from "~/pages/signin/Returning";
import { Trouble } from "~/pages/signin/Trouble";

// Linked is the way back from a provider for who is signed in already.
export default function Linked() {
  const { provider } = useParams({ strict: false });
  const { refresh } = useSession();
  const navigate = useNavigate();
  const [error, setError] = useState<ApiError>();
  const begun = useRef(false);
  useEffect(() => {
    if (begun.current || !provider) return;
    begun.current = true;
    sendOn(provider).then(
      () => refresh().then(() => navigate({ to: "/account", replace: true })),
      (cause: unknown) => setError(asError(cause)),
    );
  }, [provider, refresh, navigate]);
  if (!error) return <Loading />;
  return (
    <Card title="That did not work">
      <Stack gap="md">
        <Trouble error={error} />
        <Button onClick={() => void navigate({ to: "/account", replace: true })}>Back to your account</Button>
      </Stack>
    </Card>
  );
}
