import { Button, Text } from "@mantine/core";
import { IconPlug } from "@tabler/icons-react";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { CopyText } from "~/ui/CopyText";
import { addressOf, Left } from "./PortAddress";
import classes from "./targets.module.css";

// OpenPorts are the user's own session ports, with what is left of them.
export function OpenPorts() {
  const { me } = useSession();
  const client = useQueryClient();
  const ports = useQuery({ queryKey: ["connection", "ports"], queryFn: ({ signal }) => ask(api.GET("/port-sessions", { params: { query: { limit: 100 } }, signal })) });
  const close = useMutation({
    mutationFn: (id: string) => ask(api.DELETE("/port-sessions/{id}", { params: { path: { id } } })),
    onSettled: () => client.invalidateQueries({ queryKey: ["connection"] }),
  });
  const open = (ports.data?.items ?? []).filter((p) => p.open && p.user_id === me.user.id);
  if (open.length === 0) return null;
  return (
    <section className={classes.ports} aria-label="Open ports">
      {open.map((p) => (
        <div key={p.connection_id} className={classes.port}>
          <IconPlug size={18} stroke={1.6} color="var(--good)" aria-hidden />
          <Text span fw={600} size="sm">{p.target_name}</Text>
          <CopyText text={addressOf(p)} label="Copy the address" />
          <Text span size="sm" c="dimmed">from {p.client_ip}, <Left until={p.expires_at} /></Text>
          <Button size="compact-xs" variant="default" ml="auto" loading={close.isPending && close.variables === p.connection_id} onClick={() => close.mutate(p.connection_id)}>Close</Button>
        </div>
      ))}
    </section>
  );
}
