import { useQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import type { WebSession } from "./api";

// Watchers says who looks at the session besides its user.
export function Watchers({ s, children }: { s: WebSession; children: (text: string, tip: string) => ReactNode }) {
  const { can } = useSession();
  const q = useQuery({
    queryKey: ["connection", "watchers", s.id], enabled: s.watchers === undefined && can("connections:watch"),
    queryFn: ({ signal }) => ask(api.GET("/connections/{id}/watchers", { params: { path: { id: s.id } }, signal })),
  });
  const names = s.watchers ?? (q.data?.items ?? []).map((w) => w.user_name);
  if (names.length === 0) return null;
  return children(names.length === 1 ? `${names[0]} is watching` : `${names.length} are watching`, `Watched by ${names.join(", ")}`);
}
