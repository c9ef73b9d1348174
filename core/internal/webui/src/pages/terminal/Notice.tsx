import { Button, Group, Stack, Text, Textarea } from "@mantine/core";
import { IconAlertTriangle, IconLock, IconPlugConnectedX, IconRefresh } from "@tabler/icons-react";
import { Link as RouterLink } from "@tanstack/react-router";
import { type ReactNode, useEffect, useState } from "react";
import { close } from "./store";
import type { Session } from "./session";
import classes from "./terminal.module.css";

// Why sessions end, where core's own text says nothing.
const ends: Record<string, string> = {
  user: "You ended the session.",
  target: "The program on the target has ended.",
  terminated: "An administrator ended the session.",
  access_lost: "Your access to this target was withdrawn.",
  login_ended: "Your login has ended.",
  idle: "The session was idle for too long.",
  max_duration: "The session reached its longest permitted time.",
  route_lost: "The connection to the target was lost.",
  lease_over: "Core could not confirm your access any more.",
  shutdown: "This core is shutting down. Connect again in a moment.",
};

// Notice is what stands between a person and the terminal: opening, reasons,
// refusals, a lost network, a lock, the end.
export function Notice({ session }: { session: Session }) {
  const { phase, state, error } = session.status;
  switch (phase) {
    case "opening":
      return <Box live="polite" title={`Connecting to ${session.wish.target}…`} />;
    case "refused":
      if (error?.code === "reason_needed") return <AskReason session={session} text={error.detail || error.title} />;
      return (
        <Box live="assertive" icon={<IconAlertTriangle size={20} />} tone="bad" title={error?.title ?? "The terminal was not opened."} text={error?.detail}>
          <Button size="xs" leftSection={<IconRefresh size={16} />} onClick={() => session.reopen()}>Try again</Button>
          <Leave session={session} />
        </Box>
      );
    case "lost":
      return <Lost session={session} />;
    case "taken":
      return (
        <Box live="polite" icon={<IconPlugConnectedX size={20} />} title="This session is open in another tab or window.">
          <Button size="xs" onClick={() => session.retry()}>Take it here</Button>
          <Leave session={session} />
        </Box>
      );
    case "ended": {
      const known = ends[state?.reason ?? ""] ?? "The session has ended.";
      const status = state?.exit_status !== undefined && state.exit_status !== 0 ? ` Exit status ${state.exit_status}.` : "";
      return (
        <Box live="assertive" icon={<IconPlugConnectedX size={20} />} title="The session has ended" text={(state?.text || known) + status}>
          <Button size="xs" leftSection={<IconRefresh size={16} />} onClick={() => session.reopen()} data-autofocus>Connect again</Button>
          <Leave session={session} />
        </Box>
      );
    }
  }
  if (state?.locked) return <Box live="assertive" icon={<IconLock size={20} />} tone="warn" title="This session is locked" text={`${sentence(state.lock_text ?? "")} What you type is ignored; output goes on.`} />;
  return null;
}

// sentence ends a text that somebody typed.
const sentence = (t: string) => (t === "" || /[.!?:;]$/.test(t) ? t : `${t}.`);

function Box({ title, text, icon, tone, live, children }: { title: ReactNode; text?: ReactNode; icon?: ReactNode; tone?: string; live: "polite" | "assertive"; children?: ReactNode }) {
  return (
    <div className={classes.notice} data-tone={tone} role={live === "assertive" ? "alert" : "status"}>
      {icon}
      <div className={classes.noticeText}>
        <Text size="sm" fw={600}>{title}</Text>
        {text && <Text size="sm">{text}</Text>}
      </div>
      {children && <Group gap="xs">{children}</Group>}
    </div>
  );
}

function Leave({ session }: { session: Session }) {
  return (
    <>
      <Button size="xs" variant="default" onClick={() => close(session.key)}>Close</Button>
      {session.status.phase === "refused" && <Button size="xs" variant="default" renderRoot={(p) => <RouterLink {...p} to="/targets" />}>My targets</Button>}
    </>
  );
}

// Lost counts down to the next attempt, and to the end of core's patience.
function Lost({ session }: { session: Session }) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const t = setInterval(() => setNow(Date.now()), 250);
    return () => clearInterval(t);
  }, []);
  const { retryAt = 0, giveUpAt = 0 } = session.status;
  const wait = Math.ceil((retryAt - now) / 1000);
  const left = Math.ceil((giveUpAt - now) / 1000);
  const kept = left > 0 ? `The session is kept for ${left >= 60 ? `${Math.floor(left / 60)} min ${left % 60} s` : `${left} s`} more; what you type meanwhile is sent then.` : "The session may have ended by now.";
  return (
    <Box live="polite" icon={<IconPlugConnectedX size={20} />} tone="warn" title={navigator.onLine ? "The connection to core is lost" : "You are offline"} text={`${wait > 0 ? `Next attempt in ${wait} s. ` : "Connecting again… "}${kept}`}>
      <Button size="xs" onClick={() => session.retry()}>Connect now</Button>
    </Box>
  );
}

function AskReason({ session, text }: { session: Session; text: string }) {
  const [reason, setReason] = useState("");
  return (
    <form
      className={classes.reason}
      onSubmit={(e) => {
        e.preventDefault();
        void session.open(reason.trim());
      }}
    >
      <Stack gap="sm">
        <Text fw={600}>Why do you need {session.wish.target}?</Text>
        <Text size="sm" c="dimmed">{text} It is kept with the connection.</Text>
        <Textarea label="Reason" value={reason} onChange={(e) => setReason(e.currentTarget.value)} required maxLength={500} autosize minRows={2} autoFocus />
        <Group gap="xs" justify="flex-end">
          <Button variant="default" onClick={() => close(session.key)}>Cancel</Button>
          <Button type="submit" disabled={reason.trim() === ""}>Connect</Button>
        </Group>
      </Stack>
    </form>
  );
}
