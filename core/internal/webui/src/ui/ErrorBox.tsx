import { Alert, Button, Group, Text } from "@mantine/core";
import { IconAlertTriangle } from "@tabler/icons-react";
import { asError } from "~/api/client";

// ErrorBox says what went wrong in core's own words, and what to do.
export function ErrorBox({ error, again }: { error: unknown; again?: () => void }) {
  const e = asError(error);
  return (
    <Alert variant="light" color="red" icon={<IconAlertTriangle size={20} />} title={e.title} role="alert">
      {e.detail && <Text size="sm">{e.detail}</Text>}
      {e.errors.length > 0 && (
        <ul style={{ margin: "6px 0 0", paddingLeft: 18 }}>
          {e.errors.map((f) => (
            <li key={f.field + f.message}><b>{f.field.replace(/^body\./, "")}</b> {f.message}</li>
          ))}
        </ul>
      )}
      {e.retryAfter > 0 && <Text size="sm">Try again in {e.retryAfter} s.</Text>}
      {(again || e.requestId) && (
        <Group mt="xs" gap="sm">
          {again && <Button size="compact-sm" variant="default" onClick={again}>Try again</Button>}
          {e.requestId && <Text size="xs" c="dimmed" className="mono">{e.requestId}</Text>}
        </Group>
      )}
    </Alert>
  );
}
