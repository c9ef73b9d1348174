import { useQuery } from "@tanstack/react-query";
import { useParams, useSearch } from "@tanstack/react-router";
import { ErrorBox } from "~/ui/ErrorBox";
import { readSession, webKey } from "./api";
import { Opener } from "./Opener";
import { Viewer } from "./Viewer";
import classes from "./web.module.css";

// Web is the page of one web session, in a tab of its own: /web/$id shows it,
// /web/$id?watch=1 only looks, /web?target=&account= opens one first.
export default function Web() {
  const { id } = useParams({ strict: false }) as { id?: string };
  const search = useSearch({ strict: false }) as { target?: string; account?: string; watch?: unknown };
  if (!id) return <Opener target={String(search.target ?? "")} account={String(search.account ?? "")} />;
  return <Shown key={id} id={id} watch={search.watch !== undefined} />;
}

function Shown({ id, watch }: { id: string; watch: boolean }) {
  const q = useQuery({ queryKey: webKey(id), queryFn: () => readSession(id) });
  if (q.error && !q.data) {
    return (
      <main className={classes.middle}>
        <h1 className={classes.hidden}>Web session</h1>
        <ErrorBox error={q.error} again={() => void q.refetch()} />
      </main>
    );
  }
  if (!q.data) return <main className={classes.middle} aria-busy="true"><h1 className={classes.hidden}>Web session</h1><p role="status">Connecting…</p></main>;
  return <Viewer s={q.data} watch={watch || !q.data.own} />;
}
