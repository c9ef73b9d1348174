import { Button, CloseButton, Text } from "@mantine/core";
import { IconAlertTriangle, IconClock, IconLock, IconUserCheck, IconWifiOff } from "@tabler/icons-react";
import { type ReactNode, type RefObject, useState } from "react";
import { useNow } from "~/ui/Time";
import { pathOf } from "../approvals/words";
import { type Waiting, type WebSession, withdraw } from "./api";
import { leftText, type Warning, warning as warningOf } from "./limits";
import type { Picture } from "./useScreen";
import classes from "./web.module.css";

// useWarning tells when an end is near; it looks each second.
export function useWarning(s: WebSession | undefined, lastInput: RefObject<number>): Warning | undefined {
  const now = useNow();
  return s && warningOf(now, s, lastInput.current);
}

interface Props {
  s: WebSession;
  picture: Picture;
  watch: boolean;
  ended: boolean;
  warning?: Warning;
  stay: () => void;
  extend: () => void;
}

// Banner is one line above the picture, for what cannot wait.
export function Banner({ s, picture: { state, screen }, watch, ended, warning, stay, extend }: Props) {
  const [hidden, hide] = useState("");
  if (ended) return null;
  if (state.at === "lost") {
    return (
      <Line live="polite" icon={<IconWifiOff size={18} />} tone="warn" action={<Button size="compact-sm" variant="default" onClick={() => screen.current?.now()}>Try now</Button>}>
        {state.text || (navigator.onLine ? "The connection is interrupted." : "This computer has no network.")} The session lives on; the picture comes back by itself.
      </Line>
    );
  }
  if (s.locked) return <Line live="assertive" icon={<IconLock size={18} />} tone="warn"><b>This session is locked.</b> {sentence(s.lock_text ?? "")} {watch ? "The user's keys and pointer are ignored." : "Your keys and pointer are ignored; nothing is lost."}</Line>;
  const near = warning && `${warning.why} ${warning.why === "time" ? s.ends_at : ""} ${warning.left > 30}`;
  if (warning && near !== hidden) {
    return (
      <Line
        live="polite" icon={<IconClock size={18} />} tone="warn" hide={() => hide(near ?? "")}
        action={warning.why === "idle" ? <Button size="compact-sm" onClick={stay}>I am here</Button> : s.extend && <Button size="compact-sm" onClick={extend}>Extend</Button>}
      >
        {warning.why === "idle" ? "Nobody uses this session: it ends in " : "The longest permitted time is over in "}<b className="nums" aria-live="off">{leftText(warning.left)}</b>.
      </Line>
    );
  }
  const asked = s.approvals?.find((a) => a.state === "waiting") ?? s.approvals?.at(-1);
  if (asked && `${asked.id} ${asked.state}` !== hidden) return <Asked a={asked} own={s.own} hide={() => hide(`${asked.id} ${asked.state}`)} />;
  if (s.problem && s.problem !== hidden) return <Line live="polite" hide={() => hide(s.problem ?? "")} icon={<IconAlertTriangle size={18} />} tone="warn">{sentence(s.problem)}</Line>;
  if (state.at === "connecting") return <Line live="polite" quiet>Connecting to the picture…</Line>;
  return null;
}

// Asked tells that a request waits for a second person, and what became of it.
function Asked({ a, own, hide }: { a: Waiting; own: boolean; hide: () => void }) {
  const what = <b title={a.url}>{a.method} {short(pathOf(a.url))}</b>;
  const by = a.decided_by ? ` by ${a.decided_by}` : "";
  const reason = a.reason && (a.state === "approved" || a.state === "denied") ? `: ${sentence(a.reason)}` : ".";
  if (a.state === "waiting") {
    return (
      <Line
        live="polite" icon={<IconUserCheck size={18} />} tone="warn" hide={hide}
        action={own && <Button size="compact-sm" variant="default" onClick={() => void withdraw(a.id).catch(() => undefined)}>Take it back</Button>}
      >
        Waiting for approval of {what}.{a.why ? ` ${sentence(a.why)}` : ""}
      </Line>
    );
  }
  const outcome = { approved: `was approved${by} and is sent`, denied: `was denied${by} and not sent`, expired: "was not approved in time and not sent", withdrawn: "was taken back and not sent", lost: "was lost and not sent. Repeat it if it is still needed" }[a.state];
  return <Line live="polite" icon={<IconUserCheck size={18} />} tone={a.state === "approved" ? undefined : "warn"} hide={hide}>{what} {outcome}{reason}</Line>;
}

interface LineProps {
  live: "polite" | "assertive";
  icon?: ReactNode;
  tone?: string;
  quiet?: boolean;
  action?: ReactNode;
  hide?: () => void;
  children: ReactNode;
}

function Line({ live, icon, tone, quiet, action, hide, children }: LineProps) {
  return (
    <div className={classes.banner} data-tone={tone} data-quiet={quiet || undefined} role={live === "assertive" ? "alert" : "status"}>
      {icon}
      <div className={classes.bannerText}>
        <Text size="sm" span>{children}</Text>
        {action}
      </div>
      {hide && <CloseButton size="sm" aria-label="Hide this" onClick={hide} />}
    </div>
  );
}

// short keeps a path readable in a line; its title has all of the address.
const short = (path: string) => (path.length > 80 ? `${path.slice(0, 55)}…${path.slice(-24)}` : path);

const sentence = (t: string) => (t === "" || /[.!?:;]$/.test(t) ? t : `${t}.`);
