import { Button, Group, Modal, Stack, TextInput } from "@mantine/core";
import { type FormEvent, useState } from "react";
import { ErrorBox } from "~/ui/ErrorBox";

// Rename asks for another name.
export function Rename({ opened, close, name, run }: { opened: boolean; close: () => void; name: string; run: (name: string) => Promise<void> }) {
  const [to, setTo] = useState(name);
  const [error, setError] = useState<unknown>();
  const submit = async (e: FormEvent) => {
    e.preventDefault();
    try {
      await run(to);
      close();
    } catch (cause) {
      setError(cause);
    }
  };
  return (
    <Modal opened={opened} onClose={close} title="Rename">
      <form onSubmit={(e) => void submit(e)}>
        <Stack gap="md">
          <TextInput label="Name" value={to} onChange={(e) => setTo(e.currentTarget.value)} required withAsterisk={false} maxLength={100} data-autofocus />
          {error !== undefined && <ErrorBox error={error} />}
          <Group justify="flex-end" gap="xs"><Button variant="default" onClick={close}>Cancel</Button><Button type="submit">Rename</Button></Group>
        </Stack>
      </form>
    </Modal>
  );
}
