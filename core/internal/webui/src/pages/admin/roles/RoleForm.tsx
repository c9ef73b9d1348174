import { Checkbox, Fieldset, SimpleGrid, TextInput } from "@mantine/core";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { FormModal } from "../parts/FormModal";
import { GroupPicker, GroupsPicker } from "../parts/GroupPicker";
import { usePlaces } from "../parts/groups";
import { permissions, whole } from "./permissions";

type Role = Schemas["UserRoleView"];
type Body = Schemas["UserRoleBody"];

export function RoleForm({ opened, close, role, etag, done }: { opened: boolean; close: () => void; role?: Role; etag?: string; done?: (r: Role) => void }) {
  const { can, everywhere } = useSession();
  const { places } = usePlaces("users:manage");
  return (
    <FormModal
      opened={opened} close={close} title={role ? `Edit ${role.name}` : "Add a role"} topics={["role"]} size="lg" action={role ? "Save" : "Add"} done={done}
      initial={() => ({ name: role?.name ?? "", comment: role?.comment ?? "", permissions: (role?.permissions ?? []) as string[], group: role?.group ?? "", limited: role?.limited_to ?? (everywhere("users:manage") ? [] : places.map((g) => g.id)) })}
      save={(v) => {
        const body = { name: v.name, comment: v.comment, permissions: v.permissions, group: v.group || undefined, limited_to: v.permissions.length ? v.limited : [] } as Body;
        return role ? ask(api.PUT("/roles/{id}", { params: { path: { id: role.id }, header: { "If-Match": etag } }, body })) : ask(api.POST("/roles", { body }));
      }}
    >
      {({ v, set, at }) => (
        <>
          <TextInput label="Name" value={v.name} onChange={(e) => set({ name: e.currentTarget.value })} error={at("name")} required data-autofocus />
          <TextInput label="Comment" value={v.comment} onChange={(e) => set({ comment: e.currentTarget.value })} error={at("comment")} />
          <GroupPicker permission="users:manage" value={v.group} onChange={(group) => set({ group })} error={at("group")} />
          <Fieldset legend="Administrative rights" p="md">
            <Checkbox.Group value={v.permissions} onChange={(list) => set({ permissions: list })} description="Most roles need none: what members may reach comes from grants. Rights you do not have yourself you cannot give." error={at("permissions")}>
              <SimpleGrid cols={{ base: 1, xs: 2 }} spacing={8} mt="sm">
                {permissions.map(([p, label]) => <Checkbox key={p} value={p} label={label} size="sm" disabled={!v.permissions.includes(p) && (!can(p) || (v.limited.length > 0 && whole.includes(p)))} />)}
              </SimpleGrid>
            </Checkbox.Group>
            {v.permissions.length > 0 && <div style={{ marginTop: 12 }}><GroupsPicker value={v.limited} onChange={(limited) => set({ limited })} error={at("limited_to")} /></div>}
          </Fieldset>
        </>
      )}
    </FormModal>
  );
}
