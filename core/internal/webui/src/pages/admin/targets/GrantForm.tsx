import { Checkbox, Fieldset, NumberInput, SegmentedControl, SimpleGrid, TagsInput, Textarea, TextInput } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { api, ask, type Schemas } from "~/api/client";
import { lines } from "~/pages/fleet/edge";
import { FormModal } from "../parts/FormModal";
import { Picker } from "../parts/Picker";
import { WindowFields } from "../parts/WindowFields";
import { readWindow, windowForm } from "../parts/window";
import { featureWord, features } from "../roles/permissions";

type Grant = Schemas["TargetGrantView"];

interface Props {
  opened: boolean;
  close: () => void;
  grant?: Grant;
  role?: { id: string; name: string };
  target?: Schemas["TargetView"];
}

export function GrantForm({ opened, close, grant, role, target }: Props) {
  return (
    <FormModal
      opened={opened} close={close} title={grant ? "Edit a grant" : target ? `Open ${target.name} to a role` : `What may ${role?.name} use?`} topics={["grant"]} size="lg" action={grant ? "Save" : "Add"}
      initial={() => ({
        role: grant?.role ?? role?.id ?? "", by: (grant?.tag ? "tag" : "target") as "tag" | "target", target: grant?.target ?? target?.id ?? "", tag: grant?.tag ?? "",
        accounts: grant?.accounts ?? ["*"], features: grant ? grant.features : target?.kind === "web" ? ["web", "file_transfer"] : target?.kind === "network" ? ["network"] : ["shell", "exec", "file_transfer"], window: windowForm(grant?.window), sources: grant?.sources?.join("\n") ?? "",
        mfa: grant?.require_mfa ?? false, reason: grant?.require_reason ?? false, unrecorded: grant?.no_recording ?? false, disabled: grant?.disabled ?? false,
        max: Math.round((grant?.max_duration_seconds ?? 0) / 60) as number | string, idle: Math.round((grant?.idle_seconds ?? 0) / 60) as number | string, comment: grant?.comment ?? "",
      })}
      valid={(v) => v.role !== "" && (v.by === "tag" ? v.tag !== "" : v.target !== "")}
      save={(v) => {
        const body: Schemas["TargetGrantSettings"] = {
          role: v.role, ...(v.by === "tag" ? { tag: v.tag } : { target: v.target }), accounts: v.accounts, features: v.features, window: readWindow(v.window), sources: lines(v.sources),
          require_mfa: v.mfa, require_reason: v.reason, no_recording: v.unrecorded, disabled: v.disabled, max_duration_seconds: 60 * Number(v.max || 0), idle_seconds: 60 * Number(v.idle || 0), comment: v.comment,
        };
        return grant ? ask(api.PUT("/grants/{id}", { params: { path: { id: grant.id }, header: { "If-Match": `"${grant.version}"` } }, body })) : ask(api.POST("/grants", { body }));
      }}
    >
      {({ v, set, at }) => (
        <>
          {!role && <Picker of="role" label="Role" value={v.role} onChange={(id) => set({ role: id })} error={at("role")} required />}
          {!target && (
            <>
              <SegmentedControl aria-label="What it opens" value={v.by} onChange={(by) => set({ by: by as "tag" | "target" })} data={[{ value: "target", label: "One target" }, { value: "tag", label: "All with a tag" }]} />
              {v.by === "target" ? <Picker of="target" label="Target" value={v.target} onChange={(id) => set({ target: id })} error={at("target")} required /> : <TextInput label="Tag" placeholder="env=prod" value={v.tag} onChange={(e) => set({ tag: e.currentTarget.value })} error={at("tag")} required />}
            </>
          )}
          <Accounts target={v.by === "target" ? v.target : ""} value={v.accounts} onChange={(accounts) => set({ accounts })} error={at("accounts")} />
          <Checkbox.Group label="Uses" value={v.features} onChange={(list) => set({ features: list })} error={at("features")}>
            <SimpleGrid cols={{ base: 2, xs: 3 }} spacing={8} mt={6}>{features.map((f) => <Checkbox key={f} value={f} label={featureWord(f)} size="sm" />)}</SimpleGrid>
          </Checkbox.Group>
          <Fieldset legend="Demands" p="md">
            <SimpleGrid cols={{ base: 1, xs: 2 }} spacing={10}>
              <Checkbox label="A second factor" checked={v.mfa} onChange={(e) => set({ mfa: e.currentTarget.checked })} />
              <Checkbox label="A reason" checked={v.reason} onChange={(e) => set({ reason: e.currentTarget.checked })} />
              <NumberInput label="Longest connection, minutes" description="0: no limit." min={0} value={v.max} onChange={(n) => set({ max: n })} error={at("max_duration_seconds")} />
              <NumberInput label="Ends when idle for, minutes" description="0: no limit." min={0} value={v.idle} onChange={(n) => set({ idle: n })} error={at("idle_seconds")} />
            </SimpleGrid>
            <Checkbox mt="sm" label="Sessions may go unrecorded" checked={v.unrecorded} onChange={(e) => set({ unrecorded: e.currentTarget.checked })} />
          </Fieldset>
          <WindowFields v={v.window} set={(w) => set({ window: w })} at={at} />
          <Textarea label="From where" description="Networks the user must come from, one per line; empty: anywhere." autosize minRows={1} value={v.sources} onChange={(e) => set({ sources: e.currentTarget.value })} error={at("sources")} />
          <TextInput label="Comment" value={v.comment} onChange={(e) => set({ comment: e.currentTarget.value })} error={at("comment")} />
          {grant && <Checkbox label="Out of force for now" checked={v.disabled} onChange={(e) => set({ disabled: e.currentTarget.checked })} />}
        </>
      )}
    </FormModal>
  );
}

function Accounts({ target, value, onChange, error }: { target: string; value: string[]; onChange: (v: string[]) => void; error?: string }) {
  const q = useQuery({ queryKey: ["target", "accounts", target], queryFn: ({ signal }) => ask(api.GET("/targets/{id}/accounts", { params: { path: { id: target } }, signal })), enabled: target !== "" });
  return <TagsInput label="Accounts" description="Names; * stands for every account." value={value} onChange={onChange} data={["*", ...(q.data?.items ?? []).map((a) => a.name)]} error={error} />;
}
