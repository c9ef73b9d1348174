import { useQuery } from "@tanstack/react-query";
import { Title } from "@mantine/core";
import { readSession, webKey, type WebSession } from "../web/api";
import classes from "./connections.module.css";
import type { Connection } from "./words";
import { bytes } from "~/ui/Bytes";
import { duration } from "~/ui/Time";

// useWeb reads what a web session has besides its connection.
export function useWeb(c: Connection): WebSession | undefined {
  return useQuery({ queryKey: webKey(c.id), queryFn: () => readSession(c.id), enabled: c.kind === "web", retry: false }).data;
}

// WebFacts is where a web session ran and what its user might do.
export function WebFacts({ s }: { s: WebSession }) {
  const size = (n: number) => (n > 0 ? `up to ${bytes(n)}` : "no");
  const rows: [string, string][] = [
    ["Carrier", s.carrier], ["Web proxy", s.webproxy], ["Browser", s.warm ? "was ready" : "was started for it"],
    ["Paste, copy", `${size(s.policy.clipboard_in)}, ${size(s.policy.clipboard_out)}`], ["Upload, download", `${size(s.policy.upload_max)}, ${size(s.policy.download_max)}`],
    ["Watched by", s.watchers.join(", ")], ["Idle limit", s.idle_s > 0 ? duration(s.idle_s) : ""], ["Problem", s.problem ?? ""],
  ];
  return (
    <section className={classes.card}>
      <Title order={2}>Browser</Title>
      <dl className={classes.facts}>{rows.filter(([, v]) => v).map(([k, v]) => [<dt key={`${k}t`}>{k}</dt>, <dd key={k}>{v}</dd>])}</dl>
    </section>
  );
}
