import { TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { IconSearch } from "@tabler/icons-react";
import { useState } from "react";

// useSearchText gives a box and what was typed into it, once typing pauses.
export function useSearchText(label: string): [text: string, box: React.ReactNode] {
  const [text, setText] = useState("");
  const [settled] = useDebouncedValue(text, 200);
  return [
    settled.trim(),
    <TextInput key="search" type="search" aria-label={label} placeholder={label} value={text} onChange={(e) => setText(e.currentTarget.value)} leftSection={<IconSearch size={16} aria-hidden />} w={{ base: "100%", xs: 280 }} maxLength={100} />,
  ];
}
