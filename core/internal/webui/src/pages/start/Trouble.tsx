import { Anchor, Text } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import type { Schemas } from "~/api/client";
import { StateBadge } from "~/ui/StateBadge";
import { Ago } from "~/ui/Time";
import classes from "./Start.module.css";

export function Trouble({ list }: { list: Schemas["FleetTrouble"][] }) {
  return (
    <ul className={classes.list}>
      {list.map((t) => (
        <li key={t.kind + (t.id ?? t.name)}>
          <StateBadge state={t.level} tone={t.level === "error" ? "bad" : "warn"} label={t.level === "error" ? "Error" : "Warning"} />
          <div>
            {t.id ? <Anchor component={Link} to={`/fleet/${t.id}`} fw={600} size="sm">{t.name}</Anchor> : <Text fw={600} size="sm" span>Site {t.name}</Text>}
            {t.id && t.site && <Text size="xs" c="dimmed" span> in {t.site}</Text>}
            <Text size="sm" c="dimmed">{t.why.charAt(0).toUpperCase() + t.why.slice(1)}</Text>
          </div>
          <Text size="xs" c="dimmed">{t.since && <Ago at={t.since} />}</Text>
        </li>
      ))}
    </ul>
  );
}
