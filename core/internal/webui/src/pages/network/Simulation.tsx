import { Alert, Loader, Text } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { useQuery } from "@tanstack/react-query";
import { api, ask } from "~/api/client";
import { ErrorBox } from "~/ui/ErrorBox";
import { type NetworkText, type Simulated, some } from "./network";

// Simulation tells, while somebody edits, who would be affected by saving.
export function Simulation({ id, site, network }: { id?: string; site: string; network: NetworkText }) {
  const [draft] = useDebouncedValue(JSON.stringify({ id, site: site || undefined, network }), 500);
  const q = useQuery({
    queryKey: ["network", "simulate", draft], gcTime: 0, retry: false,
    queryFn: ({ signal }) => ask(api.POST("/network-targets/simulate", { body: JSON.parse(draft) as { network: NetworkText }, signal })),
  });
  if (q.error) return <ErrorBox error={q.error} />;
  if (!q.data) return <Loader size="sm" aria-label="Looking who is affected" />;
  const s = q.data;
  const closed = s.sessions?.filter((x) => x.effect === "closed") ?? [];
  const quiet = (s.sessions?.length ?? 0) + (s.targets?.length ?? 0) === 0;
  return (
    <Alert variant="light" color={closed.length > 0 ? "orange" : quiet ? "gray" : "blue"} title="If you save this" role="status">
      {quiet ? <Text size="sm">Nobody is affected: it overlaps no other target and no open session.</Text> : <Effects s={s} />}
    </Alert>
  );
}

function Effects({ s }: { s: Simulated }) {
  const by = (effect: string) => s.sessions?.filter((x) => x.effect === effect) ?? [];
  const who = (xs: { user_name: string; client_ip: string; target_name: string }[]) => xs.slice(0, 8).map((x) => `${x.user_name} (${x.client_ip}, ${x.target_name})`).join(", ") + (xs.length > 8 ? " and more" : "");
  const names = (effect: string) => s.targets?.filter((t) => t.effect === effect) ?? [];
  const parts: [number, string][] = [
    [by("closed").length, `${some(by("closed").length, "open session")} will be closed: ${who(by("closed"))}.`],
    [by("blocks").length, `${some(by("blocks").length, "open session")} overlap${by("blocks").length === 1 ? "s" : ""} and shut${by("blocks").length === 1 ? "s" : ""} others out while it lasts: ${who(by("blocks"))}.`],
    [by("kept").length, `${some(by("kept").length, "open session")} overlap${by("kept").length === 1 ? "s" : ""} and go${by("kept").length === 1 ? "es" : ""} on: ${who(by("kept"))}.`],
    [names("one_at_a_time").length, `Only one user at a time, together with ${names("one_at_a_time").map((t) => t.name).join(", ")}.`],
    [names("not_both").length, `One client cannot have it open together with ${names("not_both").map((t) => t.name).join(", ")}.`],
  ];
  return (
    <ul style={{ margin: 0, paddingLeft: 18, fontSize: 14 }}>
      {parts.filter(([n]) => n > 0).map(([, text]) => <li key={text}>{text}</li>)}
    </ul>
  );
}
