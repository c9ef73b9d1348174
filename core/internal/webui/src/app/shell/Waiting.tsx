import { Badge } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { api, ask } from "~/api/client";
import { key } from "~/pages/approvals/words";

// Waiting is how many requests of others wait for this user.
export function Waiting() {
  const q = useQuery({ queryKey: key("count"), queryFn: ({ signal }) => ask(api.GET("/web-approvals", { params: { query: { state: "waiting", limit: 100 } }, signal })) });
  const n = (q.data?.items ?? []).filter((a) => a.may_decide).length;
  if (n === 0) return null;
  return <Badge size="sm" circle={n < 10} ml="auto" role="status" aria-label={`${n} waiting`}>{n > 99 ? "99+" : n}</Badge>;
}
