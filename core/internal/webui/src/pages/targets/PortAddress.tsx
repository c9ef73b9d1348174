import { Button, Group, Stack, Text } from "@mantine/core";
import type { Schemas } from "~/api/client";
import { CopyText } from "~/ui/CopyText";
import { duration, useNow } from "~/ui/Time";

type Port = Schemas["PortaccessSession"];

// addressOf is what to type into a client: the host the console was reached
// by when core was not told another one.
export function addressOf(port: Port): string {
  return `${port.host || location.hostname}:${port.port}`;
}

export function Left({ until }: { until: string }) {
  const now = useNow();
  return <span className="nums">{duration((new Date(until).getTime() - now) / 1000)} left</span>;
}

export function PortAddress({ port, close }: { port: Port; close: () => void }) {
  return (
    <Stack gap="md">
      <Text size="sm">The port is open. Connect your client to:</Text>
      <CopyText text={addressOf(port)} block label="Copy the address" />
      <Text size="sm" c="dimmed">Only from {port.client_ip}. <Left until={port.expires_at} />. You find it above your targets as long as it is open.</Text>
      <Group justify="flex-end"><Button onClick={close} data-autofocus>Done</Button></Group>
    </Stack>
  );
}
