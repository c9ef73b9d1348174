import { Alert, Button, Group, Loader, Stack, Text, Textarea, Title } from "@mantine/core";
import { IconRefresh, IconTargetArrow } from "@tabler/icons-react";
import { useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate } from "@tanstack/react-router";
import { useCallback, useEffect, useRef, useState } from "react";
import { type ApiError, asError } from "~/api/client";
import { ErrorBox } from "~/ui/ErrorBox";
import { openSession, webKey } from "./api";
import { viewPath } from "./path";
import classes from "./web.module.css";

type State = { at: "starting"; since: number } | { at: "reason"; text: string } | { at: "refused"; error: ApiError };

// The bar's height: the rest of the window is the remote screen.
const barHeight = 42;

// Opener asks core for a session and goes to it. The reason is asked for when
// core wants one.
export function Opener({ target, account }: { target: string; account: string }) {
  const navigate = useNavigate();
  const client = useQueryClient();
  const [state, setState] = useState<State>({ at: "starting", since: Date.now() });
  const name = target.startsWith("tgt_") ? "" : target;
  const begun = useRef(false);
  const open = useCallback(
    async (reason: string) => {
      setState({ at: "starting", since: Date.now() });
      try {
        const s = await openSession({
          target_id: target, account: account || undefined, reason: reason || undefined, time_zone: Intl.DateTimeFormat().resolvedOptions().timeZone,
          width: Math.max(320, Math.round(window.innerWidth)), height: Math.max(240, Math.round(window.innerHeight - barHeight)),
        });
        client.setQueryData(webKey(s.id), s);
        // In place: going back does not open a second one.
        void navigate({ href: viewPath(s.id), replace: true });
      } catch (e) {
        const error = asError(e);
        if (error.code === "reason_needed") setState({ at: "reason", text: error.detail || error.title });
        else setState({ at: "refused", error });
      }
    },
    [target, account, client, navigate],
  );
  useEffect(() => {
    if (begun.current || !target) return;
    begun.current = true;
    void open("");
  }, [open, target]);
  useEffect(() => {
    document.title = `${name || "Web session"} · Caponier`;
  }, [name]);
  const back = <Button variant="default" renderRoot={(p) => <Link {...p} to="/targets" />} leftSection={<IconTargetArrow size={17} />}>My targets</Button>;
  if (!target) return <main className={classes.middle}><Stack><Title order={1} size="h3">No target was named</Title><Group>{back}</Group></Stack></main>;
  return (
    <main className={classes.middle}>
      {state.at === "starting" && <Starting name={name} since={state.since} />}
      {state.at === "reason" && <Reason name={name} text={state.text} open={(r) => void open(r)} />}
      {state.at === "refused" && (
        <Stack gap="md">
          <Title order={1} size="h3">{name ? `${name} was not opened` : "The session was not opened"}</Title>
          <ErrorBox error={state.error} />
          <Group gap="xs"><Button leftSection={<IconRefresh size={17} />} onClick={() => void open("")}>Try again</Button>{back}</Group>
        </Stack>
      )}
    </main>
  );
}

// Starting says what takes time: a parked browser is there at once, a fresh
// one needs some seconds.
function Starting({ name, since }: { name: string; since: number }) {
  const [seconds, setSeconds] = useState(0);
  useEffect(() => {
    const t = setInterval(() => setSeconds((Date.now() - since) / 1000), 500);
    return () => clearInterval(t);
  }, [since]);
  return (
    <Stack align="center" gap="sm">
      <Loader size="md" aria-hidden />
      <Title order={1} size="h3">{name ? `Opening ${name}` : "Opening the session"}</Title>
      <Text size="sm" c="dimmed" role="status">{seconds < 1.5 ? "Starting a browser…" : seconds < 12 ? "No browser was ready: a fresh one starts. This takes a few seconds." : "This takes longer than usual. The machine may be busy."}</Text>
    </Stack>
  );
}

function Reason({ name, text, open }: { name: string; text: string; open: (reason: string) => void }) {
  const [reason, setReason] = useState("");
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        open(reason.trim());
      }}
    >
      <Stack gap="md">
        <Title order={1} size="h3">{name ? `Why do you open ${name}?` : "Why do you open this?"}</Title>
        <Alert variant="light" p="xs">{text}</Alert>
        <Textarea label="Reason" description="Others see it beside the connection." value={reason} onChange={(e) => setReason(e.currentTarget.value)} required maxLength={500} autosize minRows={2} autoFocus placeholder="For example a ticket number" />
        <Group justify="flex-end"><Button type="submit" disabled={!reason.trim()}>Open</Button></Group>
      </Stack>
    </form>
  );
}
