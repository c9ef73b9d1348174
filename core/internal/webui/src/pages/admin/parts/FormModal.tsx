import { Button, Group, Modal, Stack } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { type ReactNode, useState } from "react";
import { asError } from "~/api/client";
import { useReloaded } from "~/ui/conflict";
import { ErrorBox } from "~/ui/ErrorBox";
import { errorsAt } from "./errors";

export interface Form<V> {
  v: V;
  set: (change: Partial<V>) => void;
  // at is core's message about a field, for the input's error.
  at: (field: string) => string | undefined;
}

interface Props<V, R> {
  opened: boolean;
  close: () => void;
  title: string;
  initial: () => V;
  save: (v: V) => Promise<R>;
  // topics are what to read again; events do the same a moment later.
  topics: readonly string[];
  done?: (result: R) => void;
  action?: string;
  saved?: string; // said in the corner
  size?: string | number;
  valid?: (v: V) => boolean;
  children: (form: Form<V>) => ReactNode;
}

// FormModal edits one thing: core's complaints stand at their fields, a
// refusal keeps what was typed, Enter saves.
export function FormModal<V, R = unknown>(p: Props<V, R>) {
  return (
    <Modal opened={p.opened} onClose={p.close} title={p.title} size={p.size ?? "md"} closeOnClickOutside={false}>
      {p.opened && <Body {...p} />}
    </Modal>
  );
}

function Body<V, R>({ close, initial, save, topics, done, action, saved, valid, children }: Props<V, R>) {
  const [v, setV] = useState(initial);
  // As it was when the form opened: it sends the version whose values the form
  // shows, not one that arrived meanwhile, which nobody has seen.
  const [saveShown] = useState(() => save);
  useReloaded(close);
  const client = useQueryClient();
  const run = useMutation({
    mutationFn: saveShown,
    onSuccess: (result) => {
      void client.invalidateQueries({ predicate: (q) => topics.includes(String(q.queryKey[0])) });
      if (saved) notifications.show({ message: saved });
      close();
      done?.(result);
    },
  });
  const errors = errorsAt(run.error);
  const content = children({ v, set: (change) => setV((old) => ({ ...old, ...change })), at: errors.at });
  const e = run.error && asError(run.error);
  const shown = e && e.status !== 412 && (errors.others().length > 0 || e.errors.length === 0);
  return (
    <form
      onSubmit={(ev) => {
        ev.preventDefault();
        run.mutate(v);
      }}
    >
      <Stack gap="md">
        {content}
        {shown && <ErrorBox error={errors.rest()} />}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={close}>Cancel</Button>
          <Button type="submit" loading={run.isPending} disabled={valid ? !valid(v) : false}>{action ?? "Save"}</Button>
        </Group>
      </Stack>
    </form>
  );
}
