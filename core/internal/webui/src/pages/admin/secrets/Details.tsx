import { Button, Drawer, Group, SegmentedControl, Skeleton, Stack, Text, TextInput, Title } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask, askFull } from "~/api/client";
import { useSession } from "~/app/session";
import { CopyText } from "~/ui/CopyText";
import { ErrorBox } from "~/ui/ErrorBox";
import { Ago, Time } from "~/ui/Time";
import { Trail } from "../audit/Trail";
import { Danger } from "../parts/Danger";
import { FormModal } from "../parts/FormModal";
import { GroupName, GroupPicker } from "../parts/GroupPicker";
import { useGroups } from "../parts/groups";
import { Facts } from "../parts/Panel";
import { Pickers } from "../parts/Picker";
import { emptyLogin, loginDocument, seedProblem } from "./login";
import { LoginInput } from "./LoginInput";
import { kindWord, SecretInput, secretValue } from "./index";

// Details tells everything about a secret but its value.
export function Details({ id, close }: { id?: string; close: () => void }) {
  return (
    <Drawer opened={id !== undefined} onClose={close} position="right" size="lg" title="Secret">
      {id && <Body id={id} close={close} />}
    </Drawer>
  );
}

function Body({ id, close }: { id: string; close: () => void }) {
  const { can } = useSession();
  const { several } = useGroups();
  const path = { id };
  const [open, setOpen] = useState<"edit" | "value" | "delete">();
  const q = useQuery({ queryKey: ["secret", "one", id], queryFn: ({ signal }) => askFull(api.GET("/secrets/{id}", { params: { path }, signal })) });
  const uses = useQuery({ queryKey: ["target", "secret-uses", id], queryFn: ({ signal }) => ask(api.GET("/secrets/{id}/uses", { params: { path }, signal })) });
  const versions = useQuery({ queryKey: ["secret", "versions", id], queryFn: ({ signal }) => ask(api.GET("/secrets/{id}/versions", { params: { path }, signal })) });
  if (q.error) return <ErrorBox error={q.error} again={() => void q.refetch()} />;
  if (!q.data) return <Skeleton height={200} />;
  const s = q.data.data;
  const header = { "If-Match": q.data.etag };
  const done = () => setOpen(undefined);
  return (
    <Stack gap="lg">
      <Group justify="space-between" align="flex-start">
        <div><Title order={2} size="h2">{s.name}</Title>{s.comment && <Text size="sm" c="dimmed">{s.comment}</Text>}</div>
        <Group gap="xs"><Button size="xs" onClick={() => setOpen("value")}>New value</Button><Button size="xs" variant="default" onClick={() => setOpen("edit")}>Edit</Button><Button size="xs" variant="default" onClick={() => setOpen("delete")}>Delete</Button></Group>
      </Group>
      <Facts rows={[
        ["Kind", kindWord(s.kind)], several && !!s.group && ["Access group", <GroupName key="g" id={s.group} />], ["ID", <CopyText key="i" text={s.id} />], ["Stored", <Time key="s" at={s.created_at} />], ["Changed", <Ago key="c" at={s.updated_at} />],
        ["May read it", s.read_roles?.length ? `${s.read_roles.length} roles` : "nobody"], ["May write it", s.write_roles?.length ? `${s.write_roles.length} roles` : "who manages secrets"],
      ]} />
      <section>
        <Title order={3} mb={6}>Logs in with it</Title>
        {uses.error ? <ErrorBox error={uses.error} /> : uses.data?.items.length ? <Text size="sm">{uses.data.items.join(", ")}{uses.data.items.length === 10 ? " and perhaps more" : ""}</Text> : <Text size="sm" c="dimmed">{uses.data ? "No account uses it." : "…"}</Text>}
      </section>
      <section>
        <Title order={3} mb={6}>Versions</Title>
        {(versions.data ?? []).map((v) => <Text key={v.version} size="sm">Version {v.version}{v.version === s.current ? " (in use)" : ""}, stored <Ago at={v.created_at} /></Text>)}
      </section>
      {can("audit:view") && <section><Title order={3} mb={2}>Who used it</Title><Trail object={s.id} limit={15} /></section>}
      <FormModal opened={open === "value"} close={done} title={`A new value for ${s.name}`} topics={["secret"]} action="Store" saved="The new value is in use." size={s.kind === "json" ? "lg" : "md"} initial={() => ({ value: "", login: emptyLogin, as: "document" })} valid={(v) => v.as !== "login" || (Object.keys(loginDocument(v.login)).length > 0 && !seedProblem(v.login.totp))}
        save={(v) => ask(api.PUT("/secrets/{id}/value", { params: { path, header }, body: { value: s.kind === "json" && v.as === "login" ? loginDocument(v.login) : secretValue(s.kind, v.value) } }))}
      >
        {({ v, set, at }) => (
          <>
            {s.kind === "json" && <SegmentedControl aria-label="How to enter it" value={v.as} onChange={(as) => set({ as })} data={[{ value: "document", label: "As a document" }, { value: "login", label: "As a web login" }]} />}
            {s.kind === "json" && v.as === "login" ? <LoginInput value={v.login} onChange={(login) => set({ login })} error={at("value")} /> : <SecretInput kind={s.kind} value={v.value} onChange={(value) => set({ value })} error={at("value")} />}
          </>
        )}
      </FormModal>
      <FormModal
        opened={open === "edit"} close={done} title={`Edit ${s.name}`} topics={["secret"]} initial={() => ({ name: s.name, comment: s.comment ?? "", read_roles: s.read_roles ?? [], write_roles: s.write_roles ?? [], group: s.group ?? "" })}
        save={(v) => ask(api.PATCH("/secrets/{id}", { params: { path, header }, body: { ...v, group: v.group || undefined } }))}
      >
        {({ v, set, at }) => (
          <>
            <TextInput label="Name" value={v.name} onChange={(e) => set({ name: e.currentTarget.value })} error={at("name")} required data-autofocus />
            <TextInput label="Comment" value={v.comment} onChange={(e) => set({ comment: e.currentTarget.value })} error={at("comment")} />
            {!s.owner_id && <GroupPicker permission="secrets:manage" value={v.group} onChange={(group) => set({ group })} error={at("group")} />}
            {can("users:view") && <Pickers of="role" label="Roles that may read it" value={v.read_roles} onChange={(read_roles) => set({ read_roles })} error={at("read_roles")} />}
            {can("users:view") && <Pickers of="role" label="Roles that may write a new value" value={v.write_roles} onChange={(write_roles) => set({ write_roles })} error={at("write_roles")} />}
          </>
        )}
      </FormModal>
      <Danger opened={open === "delete"} close={done} title="Delete this secret?" name={s.name} action="Delete" topics={["secret"]} run={() => ask(api.DELETE("/secrets/{id}", { params: { path, header } }))} done={close}>
        All its versions go for good. A secret that accounts log in with cannot be deleted.
      </Danger>
    </Stack>
  );
}
