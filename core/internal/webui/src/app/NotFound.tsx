import { Button, Center, Stack, Text, Title } from "@mantine/core";

export function NotFound({ why = "There is no such page, or it has moved." }: { why?: string }) {
  return (
    <Center mih="60vh" p="md" component="main">
      <Stack align="center" gap="sm">
        <Title order={1}>Nothing here</Title>
        <Text c="dimmed">{why}</Text>
        <Button component="a" href="/" variant="light">Go to the start page</Button>
      </Stack>
    </Center>
  );
}
