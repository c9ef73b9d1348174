import { MultiSelect, Select } from "@mantine/core";
import { useGroups, usePlaces } from "./groups";

// GroupPicker says in which access group something is. Empty leaves it to core:
// the group it is in, or where new things of the user's belong.
export function GroupPicker({ permission, value, onChange, error, description }: { permission: string; value: string; onChange: (id: string) => void; error?: string; description?: string }) {
  const { several, nameOf } = useGroups();
  const { places } = usePlaces(permission);
  if (!several && !error) return null;
  const data = places.map((g) => ({ value: g.id, label: g.name }));
  if (value && !data.some((g) => g.value === value)) data.push({ value, label: nameOf(value) });
  return (
    <Select
      label="Access group" description={description ?? "Who administers the group looks after it."} data={data} value={value || null} onChange={(g) => onChange(g ?? "")}
      placeholder="By itself" clearable={!value} searchable={data.length > 8} error={error}
    />
  );
}

// GroupsPicker chooses groups that permissions are limited to.
export function GroupsPicker({ value, onChange, error }: { value: string[]; onChange: (ids: string[]) => void; error?: string }) {
  const { all, several } = useGroups();
  if (!several && value.length === 0) return null;
  const data = [...all.map((g) => ({ value: g.id, label: g.name })), ...value.filter((id) => !all.some((g) => g.id === id)).map((id) => ({ value: id, label: id }))];
  return <MultiSelect label="Limited to access groups" description="These rights hold in the groups chosen; none chosen: everywhere." data={data} value={value} onChange={onChange} error={error} clearable searchable={data.length > 8} hidePickedOptions />;
}

// GroupFilter limits a list to one group.
export function GroupFilter({ value, onChange }: { value: string; onChange: (id: string) => void }) {
  const { all, several } = useGroups();
  if (!several) return null;
  return <Select aria-label="Access group" placeholder="Any group" data={all.map((g) => ({ value: g.id, label: g.name }))} value={value || null} onChange={(g) => onChange(g ?? "")} clearable searchable={all.length > 8} w={170} />;
}

// GroupName names a group by its ID.
export function GroupName({ id }: { id?: string }) {
  const { nameOf } = useGroups();
  return <>{nameOf(id)}</>;
}
