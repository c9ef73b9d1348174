import { Link } from "@tanstack/react-router";
import type { Schemas } from "~/api/client";
import classes from "./Start.module.css";

interface Figure {
  name: string;
  value: string;
  note: string;
  tone?: "bad" | "warn";
  to: string;
}

const kindNames: Record<string, string> = { ssh: "SSH", tcp: "TCP", web: "web", network: "network", socks: "SOCKS" };

// Figures are the four numbers somebody looks at first.
export function Figures({ v }: { v: Schemas["OverviewView"] }) {
  const list: Figure[] = [];
  if (v.sessions) {
    const kinds = (v.sessions.kinds ?? []).map((k) => `${k.count} ${kindNames[k.kind] ?? k.kind}`).join(", ");
    list.push({ name: "Live connections", value: v.sessions.now.toLocaleString(), note: kinds || "nobody is connected", to: "/connections" });
    const share = v.sessions.opened + v.sessions.failed > 0 ? (100 * v.sessions.failed) / (v.sessions.opened + v.sessions.failed) : 0;
    list.push({ name: "Failed, 24 h", value: v.sessions.failed.toLocaleString(), note: v.sessions.failed > 0 ? `${share < 10 ? share.toFixed(1) : Math.round(share)} % of all attempts` : "every attempt worked", tone: share >= 10 ? "bad" : undefined, to: "/connections" });
  }
  if (v.edges) {
    const down = v.edges.total - v.edges.online;
    list.push({
      name: "Edge nodes online", value: `${v.edges.online.toLocaleString()} of ${v.edges.total.toLocaleString()}`,
      note: down > 0 ? `${down} not connected` : v.edges.total === 0 ? "none enrolled" : `${v.edges.streams.toLocaleString()} open streams`, tone: down > 0 ? "bad" : undefined, to: "/fleet",
    });
  }
  if (v.logins) {
    const turned = v.logins.failed + v.logins.limited;
    list.push({ name: "Failed sign-ins, 24 h", value: turned.toLocaleString(), note: `${v.logins.ok.toLocaleString()} good, ${v.logins.denied.toLocaleString()} connections denied`, tone: v.logins.limited > 0 ? "warn" : undefined, to: "/admin/audit" });
  }
  return (
    <ul className={classes.figures}>
      {list.map((f) => (
        <li key={f.name}>
          <Link to={f.to} className={classes.figure}>
            <span className={classes.name}>{f.name}</span>
            <span className={classes.value} data-tone={f.tone}>{f.value}</span>
            <span className={classes.note}>{f.note}</span>
          </Link>
        </li>
      ))}
    </ul>
  );
}
