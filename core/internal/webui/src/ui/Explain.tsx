import { Alert, Drawer, Loader, Text } from "@mantine/core";
import { IconAlertTriangle, IconCheck, IconMinus, IconX } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { api, ask } from "~/api/client";
import { ErrorBox } from "./ErrorBox";
import classes from "./Explain.module.css";

interface Props {
  target: string; // ID or name
  name: string;
  account?: string;
  user?: string; // somebody else; for administrators
  close: () => void;
}

const names: Record<string, string> = {
  user: "You", policy: "Permission", route: "Route", tunnel: "Tunnel to the site", edge_policy: "Rules of the extender", dns: "Name", tcp: "TCP connection",
  banner: "SSH answers", host_key: "Host key", login: "Sign-in on the target",
};

// Explain goes the way of a connection step by step and says where it ends.
export function Explain({ target, name, account, user, close }: Props) {
  const q = useQuery({
    queryKey: ["explain", target, account, user],
    queryFn: ({ signal }) => ask(api.GET("/targets/{id}/explain", { params: { path: { id: target }, query: { account: account || undefined, user } }, signal })),
    staleTime: 0, gcTime: 0, retry: false,
  });
  return (
    <Drawer opened onClose={close} position="right" size="md" title={`The way to ${name}${account ? ` as ${account}` : ""}`}>
      {q.isFetching && <Text size="sm" c="dimmed" role="status"><Loader size="xs" mr={8} />Trying every step…</Text>}
      {q.error && !q.isFetching && <ErrorBox error={q.error} again={() => void q.refetch()} />}
      {q.data && !q.isFetching && (
        <>
          <Alert variant="light" color={q.data.works ? "sea" : "orange"} icon={q.data.works ? <IconCheck size={20} /> : <IconAlertTriangle size={20} />} mb="md" title={q.data.works ? "Everything works" : q.data.allowed ? "You may, but it cannot be reached" : "You may not do this now"} />
          <ol className={classes.steps}>
            {q.data.stages.map((s) => (
              <li key={s.name} data-state={s.skipped ? "skipped" : s.ok ? "ok" : "bad"}>
                <span className={classes.mark}>{s.skipped ? <IconMinus size={15} aria-label="not tried" /> : s.ok ? <IconCheck size={15} aria-label="good" /> : <IconX size={15} aria-label="failed" />}</span>
                <div>
                  <div className={classes.head}><b>{names[s.name] ?? s.name}</b>{!s.skipped && <span className="nums">{s.ms < 10 ? s.ms.toFixed(1) : Math.round(s.ms)} ms</span>}</div>
                  <div className={classes.text}>{s.text}</div>
                  {s.fix && <div className={classes.fix}>{s.fix}</div>}
                </div>
              </li>
            ))}
          </ol>
        </>
      )}
    </Drawer>
  );
}
