import { Textarea } from "@mantine/core";
import { api, ask, type Schemas } from "~/api/client";
import { lines } from "~/pages/fleet/edge";
import { FormModal } from "../parts/FormModal";
import { Picker } from "../parts/Picker";
import { WindowFields } from "../parts/WindowFields";
import { readWindow, windowForm } from "../parts/window";

type Member = Schemas["UserMemberView"];

interface Props {
  opened: boolean;
  close: () => void;
  role?: { id: string; name: string };
  user?: { id: string; name: string };
  // member is the membership to change; its version is its entity tag.
  member?: Member;
}

// MemberForm puts a user into a role, or changes when and from where he is in it.
export function MemberForm({ opened, close, role, user, member }: Props) {
  const title = member ? `${member.user_name} in ${member.role_name}` : role ? `Add a member to ${role.name}` : `Add ${user?.name} to a role`;
  return (
    <FormModal
      opened={opened} close={close} title={title} topics={["role", "user"]} size="lg" action={member ? "Save" : "Add"}
      initial={() => ({ role: role?.id ?? member?.role_id ?? "", user: user?.id ?? member?.user_id ?? "", window: windowForm(member?.window), sources: member?.sources?.join("\n") ?? "" })}
      valid={(v) => v.role !== "" && v.user !== ""}
      save={(v) => ask(api.PUT("/roles/{id}/members/{user}", {
        params: { path: { id: v.role, user: v.user }, header: member ? { "If-Match": `"${member.version}"` } : {} },
        body: { window: readWindow(v.window), sources: lines(v.sources) },
      }))}
    >
      {({ v, set, at }) => (
        <>
          {!user && !member && <Picker of="user" label="User" value={v.user} onChange={(id) => set({ user: id })} required />}
          {!role && !member && <Picker of="role" label="Role" value={v.role} onChange={(id) => set({ role: id })} required />}
          <WindowFields v={v.window} set={(w) => set({ window: w })} at={at} floating />
          <Textarea label="From where" description="Networks the user must come from, one per line; empty: anywhere." placeholder="10.1.0.0/16" autosize minRows={2} value={v.sources} onChange={(e) => set({ sources: e.currentTarget.value })} error={at("sources")} spellCheck={false} />
        </>
      )}
    </FormModal>
  );
}
