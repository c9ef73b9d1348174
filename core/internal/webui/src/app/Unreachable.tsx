import { Button, Center, Loader, Paper, Stack, Text, Title } from "@mantine/core";
import { useEffect } from "react";
import type { ApiError } from "~/api/client";

export function Loading() {
  return (
    <Center mih="60vh" role="status" aria-label="Loading">
      <Loader size="sm" type="dots" />
    </Center>
  );
}

// Unreachable is shown when core does not answer before anybody is signed in.
export function Unreachable({ error, again }: { error: ApiError; again: () => void }) {
  useEffect(() => {
    window.addEventListener("online", again);
    return () => window.removeEventListener("online", again);
  }, [again]);
  return (
    <Center mih="80vh" p="md" component="main">
      <Paper withBorder p="xl" maw={440} role="alert">
        <Stack gap="sm">
          <Title order={1}>{error.title}</Title>
          <Text>{error.detail}</Text>
          <Button onClick={again} autoFocus>Try again</Button>
        </Stack>
      </Paper>
    </Center>
  );
}
