import { Link } from "@tanstack/react-router";
import { useSession } from "../session";
import { may, type Page, pages, sections } from "../pages";
import { Waiting } from "./Waiting";
import classes from "./Shell.module.css";

const order: Page["section"][] = ["work", "operate", "admin"];

export function Nav() {
  const session = useSession();
  return (
    <div className={classes.nav}>
      {order.map((section) => {
        const shown = pages.filter((p) => p.section === section && !p.hidden && may(p, session));
        if (shown.length === 0) return null;
        return (
          <div key={section}>
            <div className={classes.section}>{sections[section]}</div>
            {shown.map((p) => (
              <Link key={p.path} to={p.path} className={classes.link}>
                <p.icon size={19} stroke={1.7} aria-hidden />
                {p.title}
                {p.path === "/approvals" && <Waiting />}
              </Link>
            ))}
          </div>
        );
      })}
    </div>
  );
}
