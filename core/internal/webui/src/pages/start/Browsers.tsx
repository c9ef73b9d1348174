import { Anchor, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { api, ask } from "~/api/client";
import { Panel } from "~/pages/admin/parts/Panel";
import { capacityText, type Edge } from "~/pages/fleet/edge";
import { room } from "./room";
import classes from "./Start.module.css";

// Browsers is how many web sessions there are and how many more fit. It is not
// there in installations without carriers.
export function Browsers() {
  const q = useQuery({ queryKey: ["edge", "browsers"], queryFn: ({ signal }) => ask(api.GET("/edges", { params: { query: { limit: 500 } }, signal })) });
  const nodes = (q.data?.items ?? []).filter((e) => (e.kind === "carrier" || e.kind === "webproxy") && e.health !== "revoked");
  if (nodes.length === 0) return null;
  const r = room(nodes);
  return (
    <Panel title="Web sessions" hint={r.problem ?? <><b className="nums">{r.live}</b> now, room for <b className="nums">{r.room}</b> more, <b className="nums">{r.warm}</b> {r.warm === 1 ? "browser is" : "browsers are"} ready</>} actions={<Anchor component={Link} to="/connections?kind=web&when=live" size="sm">Live ones</Anchor>}>
      <ul className={classes.carriers}>{nodes.map((e) => <Node key={e.id} e={e} />)}</ul>
    </Panel>
  );
}

function Node({ e }: { e: Edge }) {
  const w = e.tunnel?.web;
  const used = w && w.max > 0 ? Math.min(1, w.live / Math.max(1, w.live + w.room)) : 0;
  return (
    <li>
      <Link to={`/fleet/${e.id}`}>{e.name}</Link>
      <Text size="sm" c={w?.problem || !e.tunnel ? "var(--bad)" : "dimmed"} span>{!e.tunnel ? "not connected" : w?.problem || capacityText(e)}</Text>
      {w && <span className={classes.bar} role="img" aria-label={`${Math.round(used * 100)} % used`}><svg width="100%" height="6" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden><rect width="100" height="6" rx="2" className={classes.track} /><rect width={used * 100} height="6" rx="2" className={classes.used} data-full={used > 0.9 || undefined} /></svg></span>}
    </li>
  );
}
