import { Loader, Text, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { IconSearch } from "@tabler/icons-react";
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask } from "~/api/client";
import { ErrorBox } from "~/ui/ErrorBox";
import { Marked } from "./Marked";
import classes from "./recordings.module.css";
import { at, clock } from "./words";

const most = 200;

// Transcript finds places in one recording; a click jumps there.
export function Transcript({ id, start, jump }: { id: string; start: string; jump: (seconds: number) => void }) {
  const [text, setText] = useState(start);
  const [settled] = useDebouncedValue(text.trim(), 200);
  const q = useQuery({
    queryKey: ["recording", "places", id, settled], enabled: settled !== "", placeholderData: keepPreviousData,
    queryFn: ({ signal }) => ask(api.GET("/recordings/{id}/search", { params: { path: { id }, query: { q: settled, limit: most } }, signal })),
  });
  const hits = settled ? (q.data?.hits ?? []) : [];
  return (
    <div className={classes.panel}>
      <TextInput value={text} onChange={(e) => setText(e.currentTarget.value)} aria-label="Search in the transcript" placeholder="Search in the transcript" leftSection={<IconSearch size={16} aria-hidden />} rightSection={q.isFetching && <Loader size="xs" />} type="search" maxLength={200} spellCheck={false} />
      {q.error && <ErrorBox error={q.error} />}
      <div role="status">
        {settled && q.data && <Text size="xs" c="dimmed" my={6}>{hits.length === 0 ? "Not found" : hits.length === most ? `The first ${most} places` : `${hits.length} ${hits.length === 1 ? "place" : "places"}`}</Text>}
        {!settled && <Text size="sm" c="dimmed" mt="sm">Type a part of a command or of its output to jump to that moment.</Text>}
      </div>
      <ol className={classes.hits}>
        {hits.map((h) => (
          <li key={h.at + h.line}>
            <button type="button" onClick={() => jump(at(h.at) - 0.2)}><span className="nums">{clock(at(h.at))}</span><code><Marked line={h.line} text={settled} /></code></button>
          </li>
        ))}
      </ol>
    </div>
  );
}
