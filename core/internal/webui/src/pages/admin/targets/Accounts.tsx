import { Button, Checkbox, Group, Select, SimpleGrid, Skeleton, Text, TextInput, VisuallyHidden } from "@mantine/core";
import { IconPlus } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { ErrorBox } from "~/ui/ErrorBox";
import { StateBadge } from "~/ui/StateBadge";
import { FormModal } from "../parts/FormModal";
import { Panel } from "../parts/Panel";
import { Picker } from "../parts/Picker";
import classes from "../parts/Table.module.css";
import { featureWord, features } from "../roles/permissions";

type Account = Schemas["TargetAccountView"];
type Auth = "certificate" | "password" | "key" | "ask";

const webAuths: Partial<Record<Auth, string>> = { password: "Stored login", ask: "The user's own login" };
const auths: Record<Auth, string> = { certificate: "Certificate of core", password: "Stored password", key: "Stored key", ask: "The user's own password" };

export function Accounts({ target }: { target: Schemas["TargetView"] }) {
  const { can, within } = useSession();
  const manage = within("targets:manage", target.group);
  const path = { id: target.id };
  const web = target.kind === "web";
  const [form, setForm] = useState<{ account?: Account }>();
  const [removing, setRemoving] = useState<Account>();
  const q = useQuery({ queryKey: ["target", "accounts", target.id], queryFn: ({ signal }) => ask(api.GET("/targets/{id}/accounts", { params: { path }, signal })) });
  const rows = q.data?.items ?? [];
  const edited = form?.account;
  return (
    <Panel title="Accounts" hint={web ? "Logins in the application. The webproxy puts the credential in; people never see it." : "Logins on the target and how core proves itself."} actions={manage && <Button size="xs" variant="default" leftSection={<IconPlus size={16} />} onClick={() => setForm({})}>Add account</Button>}>
      {q.error && <ErrorBox error={q.error} again={() => void q.refetch()} />}
      {q.isPending ? <Skeleton height={70} /> : rows.length === 0 ? <Text size="sm" c="dimmed">None{target.kind === "ssh" ? ": nobody can log in." : web ? ": people sign in themselves." : "; a TCP service needs none."}</Text> : (
        <div className={classes.scroll}>
          <table className={classes.plain}>
            <thead><tr><th scope="col">Account</th><th scope="col">Logs in with</th><th scope="col">May be used for</th><th scope="col" data-end><VisuallyHidden>Actions</VisuallyHidden></th></tr></thead>
            <tbody>
              {rows.map((a) => (
                <tr key={a.id}>
                  <td><b className="mono">{a.name}</b>{a.disabled && <div><StateBadge state="disabled" /></div>}</td>
                  <td>{(web ? webAuths : auths)[a.auth as Auth] ?? a.auth}{a.secret && <Text size="xs" c="dimmed" className="mono">{a.secret}</Text>}</td>
                  <td>{a.features.map(featureWord).join(", ")}</td>
                  <td data-end>{manage && <Group gap={6} justify="flex-end" wrap="nowrap"><Button size="compact-xs" variant="default" onClick={() => setForm({ account: a })}>Edit</Button><Button size="compact-xs" variant="default" onClick={() => setRemoving(a)}>Remove</Button></Group>}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <FormModal
        opened={form !== undefined} close={() => setForm(undefined)} title={edited ? `Edit account ${edited.name}` : "Add an account"} topics={["target"]} action={edited ? "Save" : "Add"} size="lg"
        initial={() => ({ name: edited?.name ?? "", auth: (edited?.auth ?? (web ? "password" : "certificate")) as Auth, secret: edited?.secret ?? "", features: edited?.features ?? [], disabled: edited?.disabled ?? false })}
        save={(v) => {
          const body: Schemas["TargetAccountSettings"] = { name: v.name, auth: v.auth, secret: v.auth === "password" || v.auth === "key" ? v.secret : undefined, features: v.features, disabled: v.disabled };
          return edited ? ask(api.PUT("/targets/{id}/accounts/{account}", { params: { path: { ...path, account: edited.id }, header: { "If-Match": `"${edited.version}"` } }, body })) : ask(api.POST("/targets/{id}/accounts", { params: { path }, body }));
        }}
      >
        {({ v, set, at }) => (
          <>
            <TextInput label="Name" description={web ? "The user name, unless the secret holds one." : "The login on the target."} value={v.name} onChange={(e) => set({ name: e.currentTarget.value })} error={at("name")} required data-autofocus spellCheck={false} />
            <Select label="Logs in with" data={Object.entries(web ? webAuths : auths).map(([value, label]) => ({ value, label }))} value={v.auth} onChange={(a) => set({ auth: (a ?? "certificate") as Auth })} allowDeselect={false} error={at("auth")} />
            {(v.auth === "password" || v.auth === "key") && (can("secrets:manage") ? <Picker of="secret" label="Secret" description={web ? "A password, or a login of a web application with one-time codes, token or certificate." : "It is opened in core for one login and never shown."} value={v.secret} onChange={(secret) => set({ secret })} error={at("secret")} required /> : <Text size="sm" c="dimmed">Choosing a secret needs the right to manage secrets.</Text>)}
            <Checkbox.Group label="May be used for" description="At all; grants can allow less. None ticked: everything the kind of target knows." value={v.features} onChange={(list) => set({ features: list })} error={at("features")}>
              <SimpleGrid cols={{ base: 2, xs: 3 }} spacing={8} mt={6}>{features.filter((f) => (web ? f === "web" || f === "file_transfer" : f !== "web" && f !== "network")).map((f) => <Checkbox key={f} value={f} label={featureWord(f)} size="sm" />)}</SimpleGrid>
            </Checkbox.Group>
            {edited && <Checkbox label="Out of use for now" checked={v.disabled} onChange={(e) => set({ disabled: e.currentTarget.checked })} />}
          </>
        )}
      </FormModal>
      <Confirm opened={removing !== undefined} close={() => setRemoving(undefined)} title={`Remove account ${removing?.name}?`} action="Remove" danger run={async () => { if (removing) await ask(api.DELETE("/targets/{id}/accounts/{account}", { params: { path: { ...path, account: removing.id }, header: { "If-Match": `"${removing.version}"` } } })); await q.refetch(); }}>
        Connections that use it end. The login on the host itself stays.
      </Confirm>
    </Panel>
  );
}
