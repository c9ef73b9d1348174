import { Anchor, Text } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import type { Schemas } from "~/api/client";
import { StateBadge } from "~/ui/StateBadge";
import { Ago, useNow } from "~/ui/Time";
import classes from "./Start.module.css";

type Thing = Schemas["OverviewExpiring"];

const kinds: Record<Thing["kind"], string> = {
  edge_certificate: "Node certificate", edge_ca: "Edge CA", tls_certificate: "TLS certificate", api_token: "API token", membership: "Membership",
};

const links: Partial<Record<Thing["kind"], (t: Thing) => string>> = {
  edge_certificate: (t) => `/fleet/${t.id}`,
  membership: (t) => `/admin/roles/${t.id}`,
};

const day = 86_400_000;

export function Expiring({ list }: { list: Thing[] }) {
  const now = useNow();
  return (
    <ul className={classes.list}>
      {list.map((t) => {
        const left = Date.parse(t.at) - now;
        const to = links[t.kind]?.(t);
        return (
          <li key={t.kind + t.id + t.name + t.at}>
            <StateBadge state="expiring" tone={left < 2 * day ? "bad" : left < 7 * day ? "warn" : "off"} label={kinds[t.kind]} />
            <div>
              {to ? <Anchor component={Link} to={to} fw={600} size="sm">{t.name}</Anchor> : <Text fw={600} size="sm" span>{t.name}</Text>}
              {t.text && <Text size="sm" c="dimmed">{t.text}</Text>}
            </div>
            <Text size="xs" c="dimmed"><Ago at={t.at} /></Text>
          </li>
        );
      })}
    </ul>
  );
}
