import { Alert, Button, Group, Menu, Modal, Stack, Text, TextInput } from "@mantine/core";
import { IconChevronDown, IconPlus, IconStack2 } from "@tabler/icons-react";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { Confirm } from "~/ui/Confirm";
import { CopyText } from "~/ui/CopyText";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";
import { StateBadge } from "~/ui/StateBadge";
import { Ago } from "~/ui/Time";
import { useList } from "~/ui/useList";
import { Danger } from "../parts/Danger";
import { FormModal } from "../parts/FormModal";
import { Pickers } from "../parts/Picker";
import { useSearchText } from "../parts/SearchBox";
import classes from "../parts/Table.module.css";

type Client = Schemas["UserClientView"];
type Secret = Schemas["CreateApiClientClientSecretOutputBody"];

export default function Clients() {
  const [text, box] = useSearchText("Find an API client");
  const [adding, setAdding] = useState(false);
  const [made, setMade] = useState<Secret>();
  const [act, setAct] = useState<{ what: "renew" | "delete" | "disable"; c: Client }>();
  const list = useList(["user", "clients", text], (cursor, signal) => ask(api.GET("/api-clients", { params: { query: { search: text || undefined, cursor, limit: 200 } }, signal })));
  const header = { "If-Match": `"${act?.c.version}"` };
  const path = { id: act?.c.id ?? "" };
  const close = () => setAct(undefined);
  const columns: Column<Client>[] = [
    { key: "name", header: "Client", width: "minmax(150px, 1.2fr)", render: (c) => <span className={classes.two}><b>{c.name}</b>{c.comment && <small>{c.comment}</small>}</span> },
    { key: "id", header: "client_id", width: "minmax(150px, 1fr)", from: 1000, render: (c) => <CopyText text={c.id} /> },
    { key: "state", header: "State", width: "110px", from: 700, render: (c) => <StateBadge state={c.disabled ? "disabled" : c.locked ? "locked" : "active"} /> },
    { key: "secret", header: "Secret set", width: "130px", from: 700, render: (c) => <Ago at={c.secret_set_at} /> },
    {
      key: "do", header: "Actions", quiet: true, width: "110px", align: "end", render: (c) => (
        <Menu position="bottom-end">
          <Menu.Target><Button size="compact-xs" variant="default" rightSection={<IconChevronDown size={14} />} aria-label={`Actions for ${c.name}`}>Actions</Button></Menu.Target>
          <Menu.Dropdown>
            <Menu.Item onClick={() => setAct({ what: "renew", c })}>New secret…</Menu.Item>
            <Menu.Item onClick={() => setAct({ what: "disable", c })}>{c.disabled ? "Enable…" : "Disable…"}</Menu.Item>
            <Menu.Item color="red" onClick={() => setAct({ what: "delete", c })}>Delete…</Menu.Item>
          </Menu.Dropdown>
        </Menu>
      ),
    },
  ];
  return (
    <Page title="API clients" fill hint="Programs with a secret of their own. People make tokens under My account." actions={<>{box}<Button leftSection={<IconPlus size={17} />} onClick={() => setAdding(true)}>Add client</Button></>}>
      <DataTable label="API clients" columns={columns} list={list} rowKey={(c) => c.id} rowHeight={54} empty={text ? <Empty title="No client matches" /> : <Empty icon={IconStack2} title="No API clients yet">Make one for each program, with the roles it needs.</Empty>} />
      <FormModal
        opened={adding} close={() => setAdding(false)} title="Add an API client" topics={["user"]} action="Add" initial={() => ({ name: "", comment: "", roles: [] as string[] })} done={setMade}
        save={(v) => ask(api.POST("/api-clients", { body: { name: v.name, comment: v.comment || undefined, roles: v.roles } }))}
      >
        {({ v, set, at }) => (
          <>
            <TextInput label="Name" value={v.name} onChange={(e) => set({ name: e.currentTarget.value })} error={at("name")} required data-autofocus spellCheck={false} />
            <TextInput label="Comment" value={v.comment} onChange={(e) => set({ comment: e.currentTarget.value })} error={at("comment")} />
            <Pickers of="role" label="Roles" description="What it may do and reach." value={v.roles} onChange={(roles) => set({ roles })} error={at("roles")} />
          </>
        )}
      </FormModal>
      <Modal opened={made !== undefined} onClose={() => setMade(undefined)} title={`The secret of ${made?.name}`} closeOnClickOutside={false} size="lg">
        {made && (
          <Stack gap="md">
            <Alert variant="light" color="yellow" p="sm">It is shown only now. Core keeps a hash of it.</Alert>
            <div><Text size="sm" fw={500}>client_id</Text><CopyText block text={made.id} /></div>
            <div><Text size="sm" fw={500}>client_secret</Text><CopyText block text={made.client_secret} /></div>
            <div><Text size="sm" fw={500}>To get an access token</Text><CopyText block text={`curl -sS -u "$CLIENT_ID:$CLIENT_SECRET" -d grant_type=client_credentials ${location.origin}/api/v1/oauth/token`} /></div>
            <Group justify="flex-end"><Button onClick={() => setMade(undefined)}>Done</Button></Group>
          </Stack>
        )}
      </Modal>
      <Confirm opened={act?.what === "renew"} close={close} title={`A new secret for ${act?.c.name}?`} action="Make a new secret" danger run={async () => { setMade(await ask(api.POST("/api-clients/{id}/secret", { params: { path } }))); list.again(); }}>
        The present secret and every access token made with it end at once.
      </Confirm>
      <Confirm opened={act?.what === "disable"} close={close} title={act?.c.disabled ? `Enable ${act.c.name}?` : `Disable ${act?.c.name}?`} action={act?.c.disabled ? "Enable" : "Disable"} danger={!act?.c.disabled} run={async () => { await ask(api.PATCH("/api-clients/{id}", { params: { path, header }, body: { disabled: !act?.c.disabled } })); list.again(); }}>
        {act?.c.disabled ? "Its secret works again." : "Nothing of it works until it is enabled again; what it has open ends."}
      </Confirm>
      <Danger opened={act?.what === "delete"} close={close} title="Delete this API client?" name={act?.c.name ?? ""} action="Delete" topics={["user"]} run={() => ask(api.DELETE("/api-clients/{id}", { params: { path, header } }))}>
        Its secret, its tokens and its memberships go.
      </Danger>
    </Page>
  );
}
