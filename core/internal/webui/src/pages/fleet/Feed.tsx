import { Button, Skeleton } from "@mantine/core";
import { api, ask } from "~/api/client";
import { Empty } from "~/ui/Empty";
import { ErrorBox } from "~/ui/ErrorBox";
import { useList } from "~/ui/useList";
import { AuditLine } from "../admin/audit/Line";
import classes from "./Fleet.module.css";

// Feed is what happened to the fleet, newest first, as it happens.
export function Feed({ node, short }: { node?: string; short?: boolean }) {
  const list = useList(["audit", "fleet", node ?? ""], (cursor, signal) =>
    ask(api.GET("/audit-events", { params: { query: { ...(node ? { object: node } : { type: "edge." }), cursor, limit: short ? 12 : 100 } }, signal })));
  if (list.error) return <ErrorBox error={list.error} again={list.again} />;
  return (
    <div className={short ? undefined : classes.feed} aria-live="polite" aria-label="Events">
      {list.loading && [0, 1, 2, 3, 4].map((i) => <Skeleton key={i} height={14} my={14} />)}
      {list.rows.map((e) => <AuditLine key={e.seq} e={e} />)}
      {!list.loading && list.rows.length === 0 && <Empty title="Nothing happened yet" />}
      {list.more && <Button variant="subtle" size="compact-sm" onClick={list.loadMore} my="xs">Show older</Button>}
    </div>
  );
}
