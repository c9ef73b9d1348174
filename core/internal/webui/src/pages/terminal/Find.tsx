import { ActionIcon, Text, TextInput } from "@mantine/core";
import { IconArrowDown, IconArrowUp, IconX } from "@tabler/icons-react";
import { useEffect, useState } from "react";
import type { Session } from "./session";
import classes from "./terminal.module.css";

const marks = { matchBackground: "#7a5600", matchBorder: "#e6c07b", matchOverviewRuler: "#e6c07b", activeMatchBackground: "#0f766e", activeMatchColorOverviewRuler: "#57bfb1" };

// Find searches what the terminal still holds.
export function Find({ session, close }: { session: Session; close: () => void }) {
  const [text, setText] = useState("");
  const [found, setFound] = useState<{ index: number; count: number }>();
  const { search } = session;
  useEffect(() => {
    const d = search.onDidChangeResults((r) => setFound({ index: r.resultIndex, count: r.resultCount }));
    return () => {
      d.dispose();
      search.clearDecorations();
    };
  }, [search]);
  const go = (t: string, back: boolean, incremental = false) => {
    if (t === "") {
      search.clearDecorations();
      setFound(undefined);
    } else if (back) search.findPrevious(t, { decorations: marks });
    else search.findNext(t, { decorations: marks, incremental });
  };
  return (
    <div className={classes.find} role="search">
      <TextInput
        size="xs" aria-label="Search in the terminal" placeholder="Search" value={text} autoFocus spellCheck={false}
        onChange={(e) => {
          setText(e.currentTarget.value);
          go(e.currentTarget.value, false, true);
        }}
        onKeyDown={(e) => {
          if (e.key === "Enter") go(text, !e.shiftKey);
          else if (e.key === "Escape") close();
        }}
      />
      <Text size="xs" c="dimmed" aria-live="polite" className={classes.count}>{text === "" || !found ? "" : found.count === 0 ? "Nothing found" : found.index < 0 ? `${found.count}+` : `${found.index + 1} of ${found.count}`}</Text>
      <ActionIcon variant="subtle" color="gray" aria-label="Previous" onClick={() => go(text, true)}><IconArrowUp size={16} /></ActionIcon>
      <ActionIcon variant="subtle" color="gray" aria-label="Next" onClick={() => go(text, false)}><IconArrowDown size={16} /></ActionIcon>
      <ActionIcon variant="subtle" color="gray" aria-label="Close the search" onClick={close}><IconX size={16} /></ActionIcon>
    </div>
  );
}
