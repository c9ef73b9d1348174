import { Button, FileButton, Group, Text, Textarea } from "@mantine/core";
import { IconUpload } from "@tabler/icons-react";
import { useState } from "react";

interface Props {
  label: string;
  description: string;
  placeholder: string;
  value: string;
  onChange: (pem: string) => void;
  error?: string;
}

const most = 8 << 20; // bytes of a file

// PemInput takes PEM text, typed or from a file.
export function PemInput({ label, description, placeholder, value, onChange, error }: Props) {
  const [complaint, setComplaint] = useState<string>();
  const read = async (file: File | null) => {
    if (!file) return;
    if (file.size > most) return setComplaint("This file is too large.");
    const text = await file.text();
    if (!text.includes("-----BEGIN ")) return setComplaint("This file is not in PEM form. Convert it with openssl first.");
    setComplaint(undefined);
    onChange(text);
  };
  return (
    <div>
      <Textarea label={label} description={description} placeholder={placeholder} value={value} onChange={(e) => onChange(e.currentTarget.value)} error={error} required autosize minRows={4} maxRows={10} classNames={{ input: "mono" }} spellCheck={false} />
      <Group mt={6} gap="sm">
        <FileButton accept=".pem,.crt,.cer,.crl,.txt" onChange={(f) => void read(f)}>{(props) => <Button {...props} size="compact-sm" variant="default" leftSection={<IconUpload size={15} />}>From a file</Button>}</FileButton>
        {complaint && <Text size="sm" c="var(--bad)" role="alert">{complaint}</Text>}
      </Group>
    </div>
  );
}
