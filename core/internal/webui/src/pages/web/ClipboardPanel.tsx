import { ActionIcon, Button, Group, Stack, Text, Textarea } from "@mantine/core";
import { IconX } from "@tabler/icons-react";
import { useState } from "react";
import { bytes } from "~/ui/Bytes";
import type { WebPolicy } from "./api";
import { canRead, give, sizeOf, tooMuch } from "./clipboard";
import classes from "./web.module.css";

interface Props {
  policy: WebPolicy;
  out?: { text: string; given: boolean };
  taken: () => void;
  send: (text: string) => boolean;
  close: () => void;
}

// ClipboardPanel is for browsers that do not share the clipboard, and for
// looking at what passes.
export function ClipboardPanel({ policy, out, taken, send, close }: Props) {
  const [text, setText] = useState("");
  const [said, setSaid] = useState("");
  const problem = tooMuch(text, policy.clipboard_in);
  const read = async () => {
    try {
      setText(await navigator.clipboard.readText());
      setSaid("");
    } catch {
      setSaid("The browser did not let this page read the clipboard. Paste into the box instead.");
    }
  };
  return (
    <section className={classes.panel} aria-label="Clipboard">
      <Group gap={4} wrap="nowrap" className={classes.panelHead}>
        <Text fw={600} size="sm" style={{ flex: 1 }}>Clipboard</Text>
        <ActionIcon variant="subtle" color="gray" aria-label="Close the clipboard" onClick={close}><IconX size={18} /></ActionIcon>
      </Group>
      <Stack gap="lg" p="sm" className={classes.panelBody}>
        {policy.clipboard_in > 0 ? (
          <form
            onSubmit={(e) => {
              e.preventDefault();
              if (text && !problem && send(text)) {
                setSaid("The session has it now: paste there.");
                setText("");
              }
            }}
          >
            <Textarea
              label="Into the session" description={`Or just press Ctrl+V in the picture. At most ${bytes(policy.clipboard_in)} at once.`} value={text} onChange={(e) => setText(e.currentTarget.value)} autosize minRows={4} maxRows={12}
              error={problem} spellCheck={false} data-autofocus
            />
            <Group gap="xs" mt={8}>
              <Button type="submit" size="xs" disabled={!text || problem !== undefined}>Send</Button>
              {canRead() && <Button size="xs" variant="default" onClick={() => void read()}>Read from this computer</Button>}
            </Group>
          </form>
        ) : <Text size="sm" c="dimmed">Nothing may be pasted into this session.</Text>}
        {policy.clipboard_out > 0 ? (
          <div>
            <Textarea label="From the session" description={`What was copied there last. At most ${bytes(policy.clipboard_out)} at once.`} value={out?.text ?? ""} readOnly autosize minRows={4} maxRows={12} placeholder="Nothing yet" spellCheck={false} />
            <Group gap="xs" mt={8}>
              <Button
                size="xs" variant={out && !out.given ? "filled" : "default"} disabled={!out?.text}
                onClick={() => void give(out?.text ?? "").then((ok) => {
                  if (ok) taken();
                  setSaid(ok ? "It is on your clipboard." : "The browser did not let this page write the clipboard. Select the text and copy it.");
                })}
              >
                Copy to this computer
              </Button>
              {out && <Text size="xs" c="dimmed">{bytes(sizeOf(out.text))}{out.given ? ", on your clipboard" : ""}</Text>}
            </Group>
          </div>
        ) : <Text size="sm" c="dimmed">Nothing may be copied out of this session.</Text>}
        <Text size="sm" role="status">{said}</Text>
      </Stack>
    </section>
  );
}
