import { Button, PasswordInput, Select, Textarea, TextInput } from "@mantine/core";
import { IconKey, IconPlus } from "@tabler/icons-react";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";
import { Ago } from "~/ui/Time";
import { useList } from "~/ui/useList";
import { FormModal } from "../parts/FormModal";
import { GroupFilter, GroupPicker } from "../parts/GroupPicker";
import { useGroupFilter } from "../parts/groups";
import { Pickers } from "../parts/Picker";
import classes from "../parts/Table.module.css";
import { Details } from "./Details";
import { emptyLogin, loginDocument, seedProblem } from "./login";
import { LoginInput } from "./LoginInput";

export type Secret = Schemas["VaultSecret"];

const kindWords: Record<string, string> = { password: "Password", key: "Private key", json: "JSON" };
export const kindWord = (k: string) => kindWords[k] ?? k;

const columns: Column<Secret>[] = [
  { key: "name", header: "Secret", width: "minmax(160px, 1.4fr)", render: (s) => <span className={classes.two}><b>{s.name}</b>{s.comment && <small>{s.comment}</small>}</span> },
  { key: "kind", header: "Kind", width: "110px", render: (s) => kindWord(s.kind) },
  { key: "owner", header: "Whose", width: "100px", from: 700, render: (s) => (s.owner_id ? "personal" : "shared") },
  { key: "version", header: "Versions", width: "80px", from: 1000, align: "end", render: (s) => <span className="nums">{s.current}</span> },
  { key: "changed", header: "Changed", width: "130px", from: 700, render: (s) => <Ago at={s.updated_at} /> },
];

// value makes of what was typed what core wants for the kind.
export function secretValue(kind: string, text: string): unknown {
  if (kind !== "json") return text;
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text; // core says what is wrong
  }
}

export default function Secrets() {
  const { can } = useSession();
  const [adding, setAdding] = useState(false);
  const [group, setGroup] = useGroupFilter();
  const [shown, setShown] = useState<string>();
  const list = useList(["secret", "list", group], (cursor, signal) => ask(api.GET("/secrets", { params: { query: { group: group || undefined, cursor, limit: 200 } }, signal })));
  return (
    <Page title="Secrets" fill hint="Passwords and keys core logs in with. They are written here and never shown; core opens them in memory for one use." actions={<><GroupFilter value={group} onChange={setGroup} /><Button leftSection={<IconPlus size={17} />} onClick={() => setAdding(true)}>Store a secret</Button></>}>
      <DataTable
        label="Secrets" columns={columns} list={list} rowKey={(s) => s.id} rowHeight={54} open={(s) => setShown(s.id)}
        compact={(s) => <span className={classes.two}><b>{s.name}</b><small>{kindWord(s.kind)}, changed <Ago at={s.updated_at} /></small></span>}
        empty={<Empty icon={IconKey} title="No secrets yet">Targets that take certificates need none. Store a password or key for those that do not.</Empty>}
      />
      <FormModal
        opened={adding} close={() => setAdding(false)} title="Store a secret" topics={["secret"]} action="Store" initial={() => ({ name: "", kind: "password" as "password" | "key" | "json" | "login", comment: "", value: "", login: emptyLogin, read: [] as string[], write: [] as string[], group: "" })}
        valid={(v) => v.kind !== "login" || (Object.keys(loginDocument(v.login)).length > 0 && !seedProblem(v.login.totp))}
        save={(v) => ask(api.POST("/secrets", { body: { name: v.name, kind: v.kind === "login" ? "json" : v.kind, comment: v.comment || undefined, group: v.group || undefined, read_roles: v.read, write_roles: v.write, value: v.kind === "login" ? loginDocument(v.login) : secretValue(v.kind, v.value) } }))}
        done={(s) => setShown(s.id)}
      >
        {({ v, set, at }) => (
          <>
            <TextInput label="Name" value={v.name} onChange={(e) => set({ name: e.currentTarget.value })} error={at("name")} required data-autofocus spellCheck={false} />
            <Select label="Kind" data={[{ value: "password", label: "Password" }, { value: "login", label: "Login of a web application" }, { value: "key", label: "SSH private key" }, { value: "json", label: "JSON document" }]} value={v.kind} onChange={(k) => set({ kind: (k ?? "password") as typeof v.kind, value: "" })} allowDeselect={false} error={at("kind")} />
            {v.kind === "login" ? <LoginInput value={v.login} onChange={(login) => set({ login })} error={at("value")} /> : <SecretInput kind={v.kind} value={v.value} onChange={(value) => set({ value })} error={at("value")} />}
            <TextInput label="Comment" value={v.comment} onChange={(e) => set({ comment: e.currentTarget.value })} error={at("comment")} />
            <GroupPicker permission="secrets:manage" value={v.group} onChange={(group) => set({ group })} error={at("group")} />
            {can("users:view") && <Pickers of="role" label="Roles that may read it" description="Most secrets need none: core uses them without showing them." value={v.read} onChange={(read) => set({ read })} error={at("read_roles")} />}
            {can("users:view") && <Pickers of="role" label="Roles that may write a new value" value={v.write} onChange={(write) => set({ write })} error={at("write_roles")} />}
          </>
        )}
      </FormModal>
      <Details id={shown} close={() => setShown(undefined)} />
    </Page>
  );
}

export function SecretInput({ kind, value, onChange, error }: { kind: string; value: string; onChange: (v: string) => void; error?: string }) {
  const common = { value, error, required: true, label: kind === "password" ? "Password" : kind === "key" ? "Private key" : "Document", spellCheck: false };
  if (kind === "password") return <PasswordInput {...common} onChange={(e) => onChange(e.currentTarget.value)} autoComplete="new-password" />;
  return <Textarea {...common} onChange={(e) => onChange(e.currentTarget.value)} autosize minRows={5} maxRows={14} placeholder={kind === "key" ? "-----BEGIN OPENSSH PRIVATE KEY-----" : '{"user": "…"}'} classNames={{ input: "mono" }} />;
}
