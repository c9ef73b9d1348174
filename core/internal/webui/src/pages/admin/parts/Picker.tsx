import { MultiSelect, Select } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask } from "~/api/client";

export interface Choice {
  value: string;
  label: string;
}

type Find = (search: string, signal: AbortSignal) => Promise<Choice[]>;

const users: Find = async (search, signal) => ((await ask(api.GET("/users", { params: { query: { search: search || undefined, limit: 30 } }, signal }))).items ?? []).map((u) => ({ value: u.id, label: u.display_name ? `${u.name} (${u.display_name})` : u.name }));
const roles: Find = async (search, signal) => ((await ask(api.GET("/roles", { params: { query: { search: search || undefined, limit: 30 } }, signal }))).items ?? []).map((r) => ({ value: r.id, label: r.name }));
const targets: Find = async (search, signal) => ((await ask(api.GET("/targets", { params: { query: { search: search || undefined, limit: 30 } }, signal }))).items ?? []).map((t) => ({ value: t.id, label: `${t.name} (${t.address})` }));
const sites: Find = async (_, signal) => ((await ask(api.GET("/sites", { params: { query: { limit: 500 } }, signal }))).items ?? []).map((s) => ({ value: s.name, label: s.name }));
const secrets: Find = async (_, signal) => ((await ask(api.GET("/secrets", { params: { query: { limit: 500 } }, signal }))).items ?? []).map((s) => ({ value: s.id, label: `${s.name} (${s.kind})` }));

const kinds = { user: users, role: roles, target: targets, site: sites, secret: secrets };

interface Props {
  of: keyof typeof kinds;
  label: string;
  description?: string;
  placeholder?: string;
  error?: string;
  required?: boolean;
  disabled?: boolean;
}

// useChoices reads what fits the search; what is chosen stays among the choices.
function useChoices(of: keyof typeof kinds, text: string, chosen: readonly string[]) {
  const [settled] = useDebouncedValue(text, 150);
  const q = useQuery({ queryKey: [of, "choices", settled], queryFn: ({ signal }) => kinds[of](settled, signal) });
  const found = q.data ?? [];
  const missing = chosen.filter((id) => id && !found.some((c) => c.value === id));
  return { q, data: [...found, ...missing.map((id) => ({ value: id, label: id }))] };
}

// Picker chooses one thing by name, searching as one types.
export function Picker({ of, value, onChange, clearable, initialLabel, ...rest }: Props & { value: string; onChange: (id: string) => void; clearable?: boolean; initialLabel?: string }) {
  const [text, setText] = useState("");
  const { q, data } = useChoices(of, text === initialLabel ? "" : text.replace(/ \(.*$/, ""), [value]);
  const named = initialLabel ? data.map((c) => (c.value === value && c.label === value ? { ...c, label: initialLabel } : c)) : data;
  return (
    <Select
      {...rest} data={named} value={value || null} onChange={(v) => onChange(v ?? "")} searchable clearable={clearable} searchValue={text} onSearchChange={setText}
      filter={({ options }) => options} nothingFoundMessage={q.isPending ? "Searching…" : "Nothing found"} maxDropdownHeight={260} comboboxProps={{ withinPortal: true }}
    />
  );
}

// Pickers chooses several.
export function Pickers({ of, value, onChange, ...rest }: Props & { value: string[]; onChange: (ids: string[]) => void }) {
  const { data } = useChoices(of, "", value);
  return <MultiSelect {...rest} data={data} value={value} onChange={onChange} searchable clearable maxDropdownHeight={260} hidePickedOptions />;
}
