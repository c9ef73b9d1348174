import { Button, Loader, Text } from "@mantine/core";
import { IconFileSearch } from "@tabler/icons-react";
import { keepPreviousData, useInfiniteQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { api, ask } from "~/api/client";
import { Empty } from "~/ui/Empty";
import { ErrorBox } from "~/ui/ErrorBox";
import { Ago } from "~/ui/Time";
import { Marked } from "./Marked";
import classes from "./recordings.module.css";
import { at, clock } from "./words";

// Found shows where in which recordings a text occurs; each place opens the
// player at that moment.
export function Found({ text }: { text: string }) {
  const q = useInfiniteQuery({
    queryKey: ["recording", "text", text],
    queryFn: ({ pageParam, signal }) => ask(api.GET("/recordings/search", { params: { query: { q: text, cursor: pageParam, limit: 20 } }, signal })),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last) => last.next || undefined,
    enabled: text !== "",
    placeholderData: keepPreviousData,
  });
  if (text === "") return <Empty icon={IconFileSearch} title="What are you looking for?">The transcripts of every session you may see are searched, newest first.</Empty>;
  if (q.error) return <ErrorBox error={q.error} again={() => void q.refetch()} />;
  if (q.isPending) return <Text size="sm" c="dimmed" role="status"><Loader size="xs" mr={8} />Searching…</Text>;
  const found = q.data.pages.flatMap((p) => p.items ?? []);
  return (
    <div className={classes.found} aria-busy={q.isFetching}>
      {found.length === 0 && !q.hasNextPage && <Empty icon={IconFileSearch} title="Nowhere found">Try a shorter text: it is searched as you write it, ignoring case.</Empty>}
      {found.map(({ recording: r, hits }) => (
        <section key={r.id} className={classes.place}>
          <h2><Link to={`/recordings/${r.id}`}>{r.account ? `${r.account} on ${r.target_name}` : r.target_name}</Link> <span className={classes.second}>{r.user_name}, <Ago at={r.started_at} /></span></h2>
          <ol>
            {(hits ?? []).map((h) => (
              <li key={h.at + h.line}>
                <Link to={`/recordings/${r.id}`} search={{ t: r.kind === "web" ? at(h.at) : Math.floor(at(h.at)), q: text } as never}><span className="nums">{clock(at(h.at))}</span><code><Marked line={h.line} text={text} /></code></Link>
              </li>
            ))}
          </ol>
        </section>
      ))}
      {q.hasNextPage && <Button variant="default" size="xs" onClick={() => void q.fetchNextPage()} loading={q.isFetchingNextPage}>Search further back</Button>}
    </div>
  );
}
