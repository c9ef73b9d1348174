import { Checkbox, Collapse, NumberInput, Select, SimpleGrid, TagsInput, Textarea, TextInput, UnstyledButton } from "@mantine/core";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { FormModal } from "../parts/FormModal";
import { GroupPicker } from "../parts/GroupPicker";
import { Picker } from "../parts/Picker";

type Target = Schemas["TargetView"];

// TargetForm makes or edits an SSH or TCP target. Of other kinds it edits what
// all have in common and leaves the rest as it is.
export function TargetForm({ opened, close, target, etag, done }: { opened: boolean; close: () => void; target?: Target; etag?: string; done?: (t: Target) => void }) {
  const [more, setMore] = useState(false);
  const plain = !target || target.kind === "ssh" || target.kind === "tcp";
  return (
    <FormModal
      opened={opened} close={close} title={target ? `Edit ${target.name}` : "Add a target"} topics={["target"]} size="lg" action={target ? "Save" : "Add"} done={done}
      initial={() => ({
        name: target?.name ?? "", kind: target?.kind ?? "ssh", site: target?.site ?? "", host: target?.host ?? "", port: (target?.port ?? "") as number | string, comment: target?.comment ?? "",
        tags: target?.tags ?? [], disabled: target?.disabled ?? false, policy: target?.host_key_policy || "tofu", ca: target?.host_key_ca ?? "", algorithms: target?.ssh_algorithms ?? "", accounts: ["root"], group: target?.group ?? "",
      })}
      save={(v) => {
        const ssh = v.kind === "ssh";
        const body = {
          ...(plain ? {} : { network: target?.network, web: target?.web }), name: v.name, kind: v.kind, site: v.site, host: v.host, port: Number(v.port) || 0, comment: v.comment, tags: v.tags, disabled: v.disabled, group: v.group || undefined,
          ...(ssh ? { host_key_policy: v.policy, host_key_ca: v.policy === "ca" ? v.ca : "", ssh_algorithms: v.algorithms } : {}),
        } as Schemas["TargetSettings"];
        if (target) return ask(api.PUT("/targets/{id}", { params: { path: { id: target.id }, header: { "If-Match": etag } }, body }));
        return ask(api.POST("/targets", { body: { ...body, accounts: ssh ? v.accounts.map((name) => ({ name })) : [] } as Schemas["TargetNewTarget"] }));
      }}
    >
      {({ v, set, at }) => (
        <>
          <SimpleGrid cols={{ base: 1, xs: 2 }} spacing="sm">
            <TextInput label="Name" description="What people type." value={v.name} onChange={(e) => set({ name: e.currentTarget.value })} error={at("name")} required data-autofocus spellCheck={false} />
            <Select label="Kind" description={target ? "It keeps its kind." : "What it speaks."} data={plain ? [{ value: "ssh", label: "SSH" }, { value: "tcp", label: "Any TCP service" }] : [v.kind]} value={v.kind} onChange={(kind) => set({ kind: kind ?? "ssh" })} allowDeselect={false} disabled={!!target} error={at("kind")} />
          </SimpleGrid>
          {plain && (
            <SimpleGrid cols={{ base: 1, xs: 3 }} spacing="sm">
              <Picker of="site" label="Site" description="Empty: dialled by core." value={v.site} onChange={(site) => set({ site })} error={at("site")} clearable />
              <TextInput label="Host" description="As the site knows it." placeholder="10.10.0.5" value={v.host} onChange={(e) => set({ host: e.currentTarget.value })} error={at("host")} required spellCheck={false} />
              <NumberInput label="Port" description={v.kind === "ssh" ? "22 when left out." : "Needed."} min={0} max={65535} value={v.port} onChange={(port) => set({ port })} error={at("port")} hideControls required={v.kind === "tcp"} />
            </SimpleGrid>
          )}
          {!target && v.kind === "ssh" && <TagsInput label="Accounts" description="Logins on it; core uses certificates. Passwords and keys can be set afterwards." value={v.accounts} onChange={(accounts) => set({ accounts })} error={at("accounts")} />}
          <TagsInput label="Tags" description="name or name=value; grants can open all targets with a tag." value={v.tags} onChange={(tags) => set({ tags })} error={at("tags")} />
          <TextInput label="Comment" description="Its users see it." value={v.comment} onChange={(e) => set({ comment: e.currentTarget.value })} error={at("comment")} />
          <GroupPicker permission="targets:manage" value={v.group} onChange={(group) => set({ group })} error={at("group")} description={target ? undefined : "Empty: that of its site."} />
          {v.kind === "ssh" && (
            <>
              <UnstyledButton fz="sm" c="var(--accent)" onClick={() => setMore(!more)} aria-expanded={more}>{more ? "Fewer settings" : "Host keys and algorithms"}</UnstyledButton>
              <Collapse expanded={more}>
                <SimpleGrid cols={1} spacing="sm">
                  <Select label="Host key" data={[{ value: "tofu", label: "Trust the first one, then pin it" }, { value: "pinned", label: "Only keys accepted before" }, { value: "ca", label: "Certificates of an authority" }]} value={v.policy} onChange={(p) => set({ policy: p ?? "tofu" })} allowDeselect={false} error={at("host_key_policy")} />
                  {v.policy === "ca" && <Textarea label="Public key of the authority" value={v.ca} onChange={(e) => set({ ca: e.currentTarget.value })} error={at("host_key_ca")} autosize minRows={2} />}
                  <TextInput label="Algorithms for old hosts" placeholder="kex=+diffie-hellman-group14-sha1" value={v.algorithms} onChange={(e) => set({ algorithms: e.currentTarget.value })} error={at("ssh_algorithms")} spellCheck={false} />
                </SimpleGrid>
              </Collapse>
            </>
          )}
          {target && <Checkbox label="Out of service" description="Nobody gets there; connections to it end." checked={v.disabled} onChange={(e) => set({ disabled: e.currentTarget.checked })} />}
        </>
      )}
    </FormModal>
  );
}
