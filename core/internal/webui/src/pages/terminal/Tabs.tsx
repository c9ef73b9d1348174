import { ActionIcon, Tooltip } from "@mantine/core";
import { IconPlus, IconX } from "@tabler/icons-react";
import { Link as RouterLink } from "@tanstack/react-router";
import type { KeyboardEvent } from "react";
import type { Session, Status } from "./session";
import classes from "./terminal.module.css";

const words: Record<Status["phase"], string> = {
  opening: "opening", connecting: "connecting", running: "connected", lost: "reconnecting", taken: "open in another tab", ended: "ended", refused: "refused",
};

interface Props {
  sessions: readonly Session[];
  active: string;
  show: (key: string) => void;
  close: (key: string) => void;
}

// Tabs are the open sessions, each with its state: a dot and a word.
export function Tabs({ sessions, active, show, close }: Props) {
  const move = (e: KeyboardEvent, i: number) => {
    const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: sessions.length - 1 }[e.key];
    if (e.key === "Delete") close(sessions[i]!.key);
    if (to === undefined) return;
    e.preventDefault();
    const next = sessions[(to + sessions.length) % sessions.length]!;
    show(next.key);
    e.currentTarget.parentElement?.parentElement?.querySelectorAll<HTMLElement>('[role="tab"]')[sessions.indexOf(next)]?.focus();
  };
  return (
    <div className={classes.tabs}>
      <div role="tablist" aria-label="Terminals" className={classes.tablist}>
        {sessions.map((s, i) => (
          <div key={s.key} className={classes.tab} data-active={s.key === active || undefined} role="presentation">
            <button
              type="button" role="tab" aria-keyshortcuts="Delete" aria-selected={s.key === active} aria-controls="terminal-panel" tabIndex={s.key === active ? 0 : -1} className={classes.tabButton}
              onClick={() => show(s.key)} onKeyDown={(e) => move(e, i)} title={s.title || undefined}
            >
              <span className={classes.dot} data-phase={s.status.state?.locked ? "locked" : s.status.phase} aria-hidden />
              <span className={classes.tabName}>{s.wish.account ? `${s.wish.account}@${s.wish.target}` : s.wish.target}</span>
              <span className={classes.hidden}>, {s.status.state?.locked ? "locked" : words[s.status.phase]}</span>
            </button>
            <button type="button" className={classes.tabClose} title="Close (Delete key on the tab)" aria-hidden tabIndex={-1} onClick={() => close(s.key)}><IconX size={14} /></button>
          </div>
        ))}
      </div>
      <Tooltip label="Open another terminal">
        <ActionIcon renderRoot={(p) => <RouterLink {...p} to="/targets" />} variant="subtle" color="gray" aria-label="Open another terminal"><IconPlus size={18} /></ActionIcon>
      </Tooltip>
    </div>
  );
}
