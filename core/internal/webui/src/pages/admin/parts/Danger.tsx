import { Button, Group, Modal, Stack, Text, TextInput } from "@mantine/core";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { type ReactNode, useState } from "react";
import { ErrorBox } from "~/ui/ErrorBox";

interface Props {
  opened: boolean;
  close: () => void;
  title: string;
  name: string; // to be typed
  action: string;
  children: ReactNode;
  topics: readonly string[];
  run: () => Promise<unknown>;
  done?: () => void;
}

// Danger asks for the name of what will be gone.
export function Danger(p: Props) {
  return (
    <Modal opened={p.opened} onClose={p.close} title={p.title}>
      {p.opened && <Body {...p} />}
    </Modal>
  );
}

function Body({ close, name, action, children, topics, run, done }: Props) {
  const [typed, setTyped] = useState("");
  const client = useQueryClient();
  const m = useMutation({
    mutationFn: run,
    onSuccess: () => {
      close();
      done?.();
      void client.invalidateQueries({ predicate: (q) => topics.includes(String(q.queryKey[0])) });
    },
  });
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        if (typed === name) m.mutate();
      }}
    >
      <Stack gap="md">
        <Text size="sm" component="div">{children}</Text>
        <TextInput label={<>Type <b className="mono">{name}</b> to go on</>} value={typed} onChange={(e) => setTyped(e.currentTarget.value)} data-autofocus spellCheck={false} />
        {m.error && <ErrorBox error={m.error} />}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={close}>Cancel</Button>
          <Button type="submit" color="red" disabled={typed !== name} loading={m.isPending}>{action}</Button>
        </Group>
      </Stack>
    </form>
  );
}
