import { Center, Stack, Text } from "@mantine/core";
import type { Icon } from "@tabler/icons-react";
import type { ReactNode } from "react";

// Empty says why there is nothing, and what to do about it.
export function Empty({ icon: I, title, children, action }: { icon?: Icon; title: string; children?: ReactNode; action?: ReactNode }) {
  return (
    <Center mih={220} p="xl">
      <Stack align="center" gap={6} maw={420} ta="center">
        {I && <I size={34} stroke={1.3} color="var(--faint)" aria-hidden />}
        <Text fw={600}>{title}</Text>
        {children && <Text size="sm" c="dimmed" component="div">{children}</Text>}
        {action && <div style={{ marginTop: 8 }}>{action}</div>}
      </Stack>
    </Center>
  );
}
