import { ActionIcon, Button, Group, Modal, Stack, Textarea, TextInput, Tooltip } from "@mantine/core";
import { IconTrash } from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { ErrorBox } from "~/ui/ErrorBox";
import { Ago } from "~/ui/Time";
import { Part, Rows, What } from "./Part";

// Keys are the SSH keys one logs in to the bastion with.
export function Keys() {
  const { me } = useSession();
  const queries = useQueryClient();
  const key = ["user", me.user.id, "keys"];
  const { data, error } = useQuery({ queryKey: key, queryFn: () => ask(api.GET("/users/{id}/keys", { params: { path: { id: "me" } } })) });
  const [adding, setAdding] = useState(false);
  const [removing, setRemoving] = useState<Schemas["UserKeyView"]>();
  const changed = () => queries.invalidateQueries({ queryKey: key });
  return (
    <Part title="SSH keys" hint="For logging in with ssh, without your password." action={<Button variant="default" onClick={() => setAdding(true)}>Add a key</Button>}>
      {error ? <ErrorBox error={error} /> : (
        <Rows
          label="SSH keys" items={data?.items ?? []} none="None yet." rowKey={(k) => k.id}
          row={(k) => (
            <>
              <What more={<><span className="mono">{k.fingerprint}</span><br />{k.algorithm}, added <Ago at={k.created_at} />{k.last_used && <>, used <Ago at={k.last_used} /></>}</>}>{k.comment || "No comment"}</What>
              <Tooltip label="Remove"><ActionIcon variant="subtle" color="red" aria-label={`Remove ${k.comment || k.fingerprint}`} onClick={() => setRemoving(k)}><IconTrash size={17} /></ActionIcon></Tooltip>
            </>
          )}
        />
      )}
      <Modal opened={adding} onClose={() => setAdding(false)} title="Add an SSH key">
        {adding && <Add close={() => setAdding(false)} changed={changed} />}
      </Modal>
      <Confirm
        opened={!!removing} close={() => setRemoving(undefined)} title="Remove the key" action="Remove" danger
        run={async () => {
          await ask(api.DELETE("/users/{id}/keys/{part}", { params: { path: { id: "me", part: removing?.id ?? "" } } }));
          await changed();
        }}
      >
        What was opened with it ends.
      </Confirm>
    </Part>
  );
}

function Add({ close, changed }: { close: () => void; changed: () => Promise<void> }) {
  const [text, setText] = useState("");
  const [comment, setComment] = useState("");
  const [error, setError] = useState<unknown>();
  const submit = async (e: FormEvent) => {
    e.preventDefault();
    try {
      await ask(api.POST("/users/{id}/keys", { params: { path: { id: "me" } }, body: { public_key: text.trim(), comment: comment || undefined } }));
      await changed();
      close();
    } catch (cause) {
      setError(cause);
    }
  };
  return (
    <form onSubmit={(e) => void submit(e)}>
      <Stack gap="md">
        <Textarea label="Public key" description={<>The content of <code>~/.ssh/id_ed25519.pub</code></>} placeholder="ssh-ed25519 AAAA… you@laptop" value={text} onChange={(e) => setText(e.currentTarget.value)} required withAsterisk={false} autosize minRows={3} maxRows={8} data-autofocus />
        <TextInput label="Comment" description="Optional; else what the key says." value={comment} onChange={(e) => setComment(e.currentTarget.value)} maxLength={100} />
        {error !== undefined && <ErrorBox error={error} />}
        <Group justify="flex-end" gap="xs"><Button variant="default" onClick={close}>Cancel</Button><Button type="submit">Add the key</Button></Group>
      </Stack>
    </form>
  );
}
