import { ActionIcon, Badge, Button, Group, Modal, Select, Stack, Text, TextInput, Tooltip } from "@mantine/core";
import { IconTrash } from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { CopyText } from "~/ui/CopyText";
import { ErrorBox } from "~/ui/ErrorBox";
import { Ago } from "~/ui/Time";
import { Part, Rows, What } from "./Part";

const dead = (t: Schemas["UserTokenView"]) => !!t.revoked_at || new Date(t.expires_at).getTime() < Date.now();

// Tokens are for scripts that act as oneself.
export function Tokens() {
  const { me } = useSession();
  const queries = useQueryClient();
  const key = ["user", me.user.id, "tokens"];
  const { data, error } = useQuery({ queryKey: key, queryFn: () => ask(api.GET("/tokens")) });
  const [making, setMaking] = useState(false);
  const [removing, setRemoving] = useState<Schemas["UserTokenView"]>();
  const changed = () => queries.invalidateQueries({ queryKey: key });
  return (
    <Part title="API tokens" hint="For scripts that act as you." action={<Button variant="default" onClick={() => setMaking(true)}>Make a token</Button>}>
      {error ? <ErrorBox error={error} /> : (
        <Rows
          label="API tokens" items={data?.items ?? []} none="None yet." rowKey={(t) => t.id}
          row={(t) => (
            <>
              <What more={<>{dead(t) ? "Ended" : "Ends"} <Ago at={t.revoked_at ?? t.expires_at} />{t.last_used ? <>, used <Ago at={t.last_used} /> from {t.last_source}</> : ", never used"}</>}>
                {t.name} {dead(t) && <Badge color="gray">{t.revoked_at ? "Revoked" : "Expired"}</Badge>}
              </What>
              {!dead(t) && <Tooltip label="Revoke"><ActionIcon variant="subtle" color="red" aria-label={`Revoke ${t.name}`} onClick={() => setRemoving(t)}><IconTrash size={17} /></ActionIcon></Tooltip>}
            </>
          )}
        />
      )}
      <Modal opened={making} onClose={() => setMaking(false)} title="Make an API token" closeOnClickOutside={false}>
        {making && <Make close={() => setMaking(false)} changed={changed} />}
      </Modal>
      <Confirm
        opened={!!removing} close={() => setRemoving(undefined)} title={`Revoke ${removing?.name ?? ""}`} action="Revoke" danger
        run={async () => {
          await ask(api.DELETE("/tokens/{id}", { params: { path: { id: removing?.id ?? "" } } }));
          await changed();
        }}
      >
        It stops working now, and what it opened ends.
      </Confirm>
    </Part>
  );
}

function Make({ close, changed }: { close: () => void; changed: () => Promise<void> }) {
  const [name, setName] = useState("");
  const [life, setLife] = useState("90d");
  const [made, setMade] = useState<string>();
  const [error, setError] = useState<unknown>();
  const submit = async (e: FormEvent) => {
    e.preventDefault();
    setError(undefined);
    try {
      const token = await ask(api.POST("/tokens", { body: { name, expires_in: life } }));
      setMade(token.token);
      await changed();
    } catch (cause) {
      setError(cause);
    }
  };
  if (made) {
    return (
      <Stack gap="md">
        <Text size="sm">Copy the token now: it is not shown again.</Text>
        <CopyText text={made} block />
        <Group justify="flex-end"><Button onClick={close}>Done</Button></Group>
      </Stack>
    );
  }
  return (
    <form onSubmit={(e) => void submit(e)}>
      <Stack gap="md">
        <TextInput label="What is it for?" placeholder="Backup script" value={name} onChange={(e) => setName(e.currentTarget.value)} required withAsterisk={false} maxLength={100} data-autofocus />
        <Select label="How long does it live?" value={life} onChange={(v) => setLife(v ?? "90d")} allowDeselect={false} data={[{ value: "1d", label: "A day" }, { value: "30d", label: "30 days" }, { value: "90d", label: "90 days" }, { value: "365d", label: "A year" }]} />
        {error !== undefined && <ErrorBox error={error} />}
        <Group justify="flex-end" gap="xs"><Button variant="default" onClick={close}>Cancel</Button><Button type="submit">Make the token</Button></Group>
      </Stack>
    </form>
  );
}
