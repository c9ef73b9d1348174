import { Button, Group, Modal, Stack, Text, Textarea } from "@mantine/core";
import { type ReactNode, useState } from "react";
import { ErrorBox } from "./ErrorBox";
import { useRun } from "./useRun";

interface Props {
  opened: boolean;
  close: () => void;
  title: string;
  children?: ReactNode; // what will happen, in a sentence
  action: string; // the verb on the button
  danger?: boolean;
  // reason asks for one: "wanted" may stay empty, "needed" not.
  reason?: "wanted" | "needed";
  reasonLabel?: string;
  run: (reason: string) => Promise<unknown>;
}

// Confirm asks before something that cannot be taken back. It stays open with
// core's answer when that is a refusal.
export function Confirm(p: Props) {
  return (
    <Modal opened={p.opened} onClose={p.close} title={p.title}>
      {p.opened && <Body {...p} />}
    </Modal>
  );
}

function Body({ close, children, action, danger, reason, reasonLabel, run }: Props) {
  const [text, setText] = useState("");
  const { busy, error, run: go } = useRun();
  const submit = () => go(async () => {
    await run(text.trim());
    close();
  });
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        void submit();
      }}
    >
      <Stack gap="md">
        {children && <Text size="sm" component="div">{children}</Text>}
        {reason && (
          <Textarea
            label={reasonLabel ?? "Reason"} description={reason === "wanted" ? "Optional. It is written to the audit log." : "It is written to the audit log."}
            value={text} onChange={(e) => setText(e.currentTarget.value)} required={reason === "needed"} maxLength={500} autosize minRows={2} data-autofocus
          />
        )}
        {error !== undefined && <ErrorBox error={error} />}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={close} data-autofocus={reason ? undefined : true}>Cancel</Button>
          <Button type="submit" color={danger ? "red.9" : undefined} loading={busy} disabled={reason === "needed" && text.trim() === ""}>{action}</Button>
        </Group>
      </Stack>
    </form>
  );
}
