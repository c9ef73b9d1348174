import { Skeleton, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { api, ask } from "~/api/client";
import { ErrorBox } from "~/ui/ErrorBox";
import { AuditLine } from "./Line";

// Trail is the latest of what somebody did, or of what was done to a thing.
export function Trail({ about, object, limit = 10 }: { about?: string; object?: string; limit?: number }) {
  const q = useQuery({ queryKey: ["audit", "trail", about ?? "", object ?? ""], queryFn: ({ signal }) => ask(api.GET("/audit-events", { params: { query: { about, object, limit } }, signal })) });
  if (q.error) return <ErrorBox error={q.error} again={() => void q.refetch()} />;
  if (!q.data) return <Skeleton height={80} />;
  const list = q.data.items ?? [];
  if (list.length === 0) return <Text size="sm" c="dimmed" pb="sm">Nothing yet.</Text>;
  return <>{list.map((e) => <AuditLine key={e.seq} e={e} />)}</>;
}
