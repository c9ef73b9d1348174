import { ActionIcon, Badge, Button, Modal, Stack, Text, TextInput, Tooltip } from "@mantine/core";
import { IconPencil, IconTrash } from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { ApiError, api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { available, create, explain } from "~/app/webauthn";
import { ErrorBox } from "~/ui/ErrorBox";
import { Ago } from "~/ui/Time";
import { Codes, Part, Rows, What } from "./Part";
import { Prove } from "./Prove";
import { Rename } from "./Rename";

type Passkey = Schemas["SigninPasskeyView"];

// Passkeys adds, names and removes passkeys and security keys.
export function Passkeys() {
  const { me, refresh } = useSession();
  const queries = useQueryClient();
  const key = ["user", me.user.id, "passkeys"];
  const { data, error } = useQuery({ queryKey: key, queryFn: () => ask(api.GET("/users/{id}/passkeys", { params: { path: { id: "me" } } })) });
  const options = useQuery({ queryKey: ["login-options"], queryFn: () => ask(api.GET("/login/options")) });
  const [adding, setAdding] = useState(false);
  const [naming, setNaming] = useState<Passkey>();
  const [removing, setRemoving] = useState<Passkey>();
  const [codes, setCodes] = useState<readonly string[]>();
  const [name, setName] = useState("");
  const usable = available() && options.data?.passkeys !== false;
  const changed = async () => {
    await Promise.all([queries.invalidateQueries({ queryKey: key }), refresh()]);
  };
  const add = async (proof: { password: string; code?: string }) => {
    const path = { params: { path: { id: "me" } } };
    const begun = await ask(api.POST("/users/{id}/passkeys/begin", { ...path, body: proof }));
    const credential = await create(begun.options).catch((cause: unknown) => {
      throw new ApiError(-1, "passkey", explain(cause));
    });
    const made = await ask(api.POST("/users/{id}/passkeys", { ...path, body: { state: begun.state, credential, name: name.trim() || "Passkey" } }));
    if (made.recovery_codes?.length) setCodes(made.recovery_codes);
    setName("");
    await changed();
  };
  return (
    <Part
      title="Passkeys" hint="Sign in with your fingerprint, face, PIN or a security key, without a password. With one, a password needs a second factor."
      action={usable && <Button variant="default" onClick={() => setAdding(true)}>Add a passkey</Button>}
    >
      {!usable && options.data && <Text size="sm" c="dimmed" mb="sm">Passkeys do not work here: the console must be opened by a host name, in a browser that has them.</Text>}
      {error ? <ErrorBox error={error} /> : (
        <Rows
          label="Passkeys" items={data?.items ?? []} none="None yet." rowKey={(k) => k.id}
          row={(k) => (
            <>
              <What more={<>Added <Ago at={k.created_at} />{k.last_used && <>, used <Ago at={k.last_used} /></>}</>}>
                {k.name} {k.cloned_at && <Badge color="red">Copied: blocked</Badge>}{!k.verifies && <Badge color="gray">Second factor only</Badge>}
              </What>
              <Tooltip label="Rename"><ActionIcon variant="subtle" color="gray" aria-label={`Rename ${k.name}`} onClick={() => setNaming(k)}><IconPencil size={17} /></ActionIcon></Tooltip>
              <Tooltip label="Remove"><ActionIcon variant="subtle" color="red" aria-label={`Remove ${k.name}`} onClick={() => setRemoving(k)}><IconTrash size={17} /></ActionIcon></Tooltip>
            </>
          )}
        />
      )}
      <Prove opened={adding} close={() => setAdding(false)} title="Add a passkey" action="Continue" run={add}>
        <TextInput label="Name" description="So that you know it again: the device it is on." placeholder="Laptop" value={name} onChange={(e) => setName(e.currentTarget.value)} maxLength={100} />
      </Prove>
      <Prove
        opened={!!removing} close={() => setRemoving(undefined)} title={`Remove ${removing?.name ?? ""}`} action="Remove" danger
        run={async (body) => {
          await ask(api.POST("/users/{id}/passkeys/{part}/remove", { params: { path: { id: "me", part: removing?.id ?? "" } }, body }));
          await changed();
        }}
      >
        It does not sign in any more, and everything else signed in as you is signed out.
      </Prove>
      <Rename
        key={naming?.id} opened={!!naming} close={() => setNaming(undefined)} name={naming?.name ?? ""}
        run={async (to) => {
          await ask(api.PATCH("/users/{id}/passkeys/{part}", { params: { path: { id: "me", part: naming?.id ?? "" } }, body: { name: to } }));
          await changed();
        }}
      />
      <Modal opened={!!codes} onClose={() => setCodes(undefined)} title="Recovery codes" closeOnClickOutside={false}>
        <Stack gap="md">
          <Codes codes={codes ?? []} />
        </Stack>
      </Modal>
    </Part>
  );
}
