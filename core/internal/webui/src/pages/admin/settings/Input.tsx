import { Select, Switch, Textarea, TextInput } from "@mantine/core";
import type { Schemas } from "~/api/client";

interface Props {
  schema: Schemas["SettingsSchema"];
  value: string;
  onChange: (text: string) => void;
  error?: string;
  disabled: boolean;
}

// SettingInput is the input that fits a setting's type.
export function SettingInput({ schema: s, value, onChange, error, disabled }: Props) {
  const common = { id: s.name, error, disabled, "aria-describedby": `${s.name}-about` };
  const range = s.minimum !== undefined && s.maximum !== undefined ? `${s.minimum} to ${s.maximum}` : undefined;
  if (s.type === "boolean") return <Switch {...common} checked={value === "true"} onChange={(e) => onChange(String(e.currentTarget.checked))} label={value === "true" ? "On" : "Off"} />;
  if (s.enum?.length) return <Select {...common} data={s.enum} value={value} onChange={(v) => onChange(v ?? "")} allowDeselect={false} />;
  if (s.type === "names") return <Textarea {...common} value={value} onChange={(e) => onChange(e.currentTarget.value)} placeholder="example.net or 10.0.0.0/8, one per line" autosize minRows={2} spellCheck={false} />;
  if (s.type === "networks") return <Textarea {...common} value={value} onChange={(e) => onChange(e.currentTarget.value)} placeholder="10.0.0.0/8, one per line" autosize minRows={2} spellCheck={false} />;
  return <TextInput {...common} value={value} onChange={(e) => onChange(e.currentTarget.value)} inputMode={s.type === "integer" ? "numeric" : undefined} placeholder={range} title={range} spellCheck={false} />;
}
