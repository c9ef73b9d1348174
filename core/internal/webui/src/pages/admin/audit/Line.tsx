import { Text } from "@mantine/core";
import type { Schemas } from "~/api/client";
import { StateBadge } from "~/ui/StateBadge";
import { Time } from "~/ui/Time";
import classes from "./Audit.module.css";
import { sentence } from "./words";

export type Entry = Schemas["AuditEntry"];

export function OutcomeBadge({ outcome }: { outcome: Entry["outcome"] }) {
  return outcome === "ok" ? null : <StateBadge state={outcome} tone={outcome === "denied" ? "warn" : "bad"} label={outcome === "denied" ? "Denied" : "Failed"} />;
}

// AuditLine is one event in one line, for lists of the latest.
export function AuditLine({ e }: { e: Entry }) {
  return (
    <div className={classes.line}>
      <Text size="xs" c="dimmed" className={classes.when}><Time at={e.time} /></Text>
      <Text size="sm" className={classes.what}>{sentence(e)}</Text>
      <OutcomeBadge outcome={e.outcome} />
      <Text size="xs" c="dimmed" className={`mono ${classes.type}`}>{e.type}</Text>
    </div>
  );
}
