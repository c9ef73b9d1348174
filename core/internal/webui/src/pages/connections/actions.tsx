import { Button, Group, Modal, Select, Stack, Text, Textarea } from "@mantine/core";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";
import { api, ask } from "~/api/client";
import { Confirm } from "~/ui/Confirm";
import { useSession } from "~/app/session";
import { ErrorBox } from "~/ui/ErrorBox";
import type { Connection } from "./words";

interface Props {
  c: Connection;
  opened: boolean;
  close: () => void;
}

export function Terminate({ c, opened, close }: Props) {
  const client = useQueryClient();
  return (
    <Confirm
      opened={opened} close={close} title={`Terminate ${c.user_name}'s connection?`} action="Terminate" danger reason="wanted"
      run={async (reason) => {
        await ask(api.DELETE("/connections/{id}", { params: { path: { id: c.id }, query: { reason: reason || undefined } } }));
        await client.invalidateQueries({ queryKey: ["connection"] });
      }}
    >
      The connection to {c.target_name} ends at once, and the user is told so.
    </Confirm>
  );
}

const blocks = [
  { value: "none", label: "Nothing else" },
  { value: "target", label: `New connections to this target, by anybody` },
  { value: "user", label: "New connections of this user, to anything" },
];

// Lock holds a session: it stays alive, and the user's input goes nowhere.
export function Lock({ c, opened, close }: Props) {
  return (
    <Modal opened={opened} onClose={close} title={`Lock ${c.user_name}'s session?`}>
      {opened && <LockForm c={c} close={close} />}
    </Modal>
  );
}

function LockForm({ c, close }: { c: Connection; close: () => void }) {
  const { everywhere } = useSession();
  const client = useQueryClient();
  const [reason, setReason] = useState("");
  const [block, setBlock] = useState("none");
  const lock = useMutation({
    mutationFn: () => ask(api.POST("/connections/{id}/lock", { params: { path: { id: c.id } }, body: { reason: reason.trim(), block_new: block as "none" } })),
    onSuccess: async () => {
      await client.invalidateQueries({ queryKey: ["connection"] });
      close();
    },
  });
  const submit = (e: FormEvent) => {
    e.preventDefault();
    lock.mutate();
  };
  return (
    <form onSubmit={submit}>
      <Stack gap="md">
        <Text size="sm">The session on {c.target_name} stays alive, but what the user types goes nowhere until you unlock it. They see that it is locked.</Text>
        <Textarea label="Reason" description="The user sees it." value={reason} onChange={(e) => setReason(e.currentTarget.value)} maxLength={500} autosize minRows={2} data-autofocus />
        <Select label="Also stop" data={everywhere("connections:manage") ? blocks : blocks.filter((b) => b.value !== "user")} value={block} onChange={(v) => setBlock(v ?? "none")} allowDeselect={false} />
        {lock.error && <ErrorBox error={lock.error} />}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={close}>Cancel</Button>
          <Button type="submit" loading={lock.isPending}>Lock</Button>
        </Group>
      </Stack>
    </form>
  );
}

// useUnlock lets a locked session go on.
export function useUnlock(id: string) {
  const client = useQueryClient();
  return useMutation({
    mutationFn: () => ask(api.POST("/connections/{id}/unlock", { params: { path: { id } } })),
    onSettled: () => client.invalidateQueries({ queryKey: ["connection"] }),
  });
}
