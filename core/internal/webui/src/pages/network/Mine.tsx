import { Alert, Badge, Button, Modal, Stack, Text, Textarea } from "@mantine/core";
import { IconNetwork } from "@tabler/icons-react";
import { useQueryClient } from "@tanstack/react-query";
import { useMemo, useState } from "react";
import { api, ask, asError } from "~/api/client";
import { Bytes } from "~/ui/Bytes";
import { Empty } from "~/ui/Empty";
import { ErrorBox } from "~/ui/ErrorBox";
import { StateBadge } from "~/ui/StateBadge";
import { Lasting } from "~/ui/Time";
import { useList } from "~/ui/useList";
import { useRun } from "~/ui/useRun";
import classes from "./Network.module.css";
import { type Entry, line, type Session } from "./network";
import { usePresence } from "./presence";

// Mine is what the user may open and has open.
export function Mine() {
  const client = useQueryClient();
  const targets = useList(["target", "mine", "network"], (cursor, signal) => ask(api.GET("/me/targets", { params: { query: { kind: "network", cursor, limit: 200 } }, signal })));
  const sessions = useList(["network", "mine"], (cursor, signal) => ask(api.GET("/network-sessions", { params: { query: { mine: true, cursor, limit: 200 } }, signal })));
  const [over, setOver] = useState<{ target: string; why: string }>();
  const open = useMemo(() => sessions.rows.filter((s) => s.state === "open"), [sessions.rows]);
  usePresence(useMemo(() => open.map((s) => s.id), [open]), (id, why) => {
    setOver({ target: sessions.rows.find((s) => s.id === id)?.target_name ?? "The session", why });
    void client.invalidateQueries({ queryKey: ["network"] });
  });
  const byTarget = useMemo(() => new Map(sessions.rows.map((s) => [s.target_id, s])), [sessions.rows]);
  if (targets.error && targets.rows.length === 0) return <ErrorBox error={targets.error} again={targets.again} />;
  if (!targets.loading && targets.rows.length === 0 && sessions.rows.length === 0) {
    return <Empty icon={IconNetwork} title="No network target is open to you">An administrator gives a role of yours a grant with the feature network.</Empty>;
  }
  const known = new Set(targets.rows.map((e) => e.target.id));
  const others = sessions.rows.filter((s) => !known.has(s.target_id));
  return (
    <>
      {over && <Alert variant="light" color="orange" title={`${over.target} was closed`} withCloseButton onClose={() => setOver(undefined)} role="status">{over.why}</Alert>}
      <div className={classes.cards} aria-busy={targets.loading}>
        {targets.rows.map((e) => <Card key={e.target.id} entry={e} session={byTarget.get(e.target.id)} />)}
        {others.map((s) => <Card key={s.id} session={s} />)}
      </div>
    </>
  );
}

function Card({ entry, session }: { entry?: Entry; session?: Session }) {
  const client = useQueryClient();
  const { busy, error, run } = useRun();
  const [asking, setAsking] = useState(false);
  const name = entry?.target.name ?? session?.target_name ?? "";
  const act = async (what: () => Promise<unknown>) => {
    await run(what);
    void client.invalidateQueries({ queryKey: ["network"] });
  };
  const start = (reason?: string) => act(() => ask(api.POST("/network-sessions", { body: { target: name, reason: reason || undefined } })));
  const stop = (s: Session) => act(() => ask(api.DELETE("/network-sessions/{id}", { params: { path: { id: s.id } } })).catch((e: unknown) => {
    if (asError(e).status !== 409) throw e; // it had ended by itself
  }));
  const network = entry?.target.network;
  const lines = session?.destinations ?? network?.destinations.map(line) ?? [];
  const total = session?.destinations_total ?? entry?.target.destinations_total ?? lines.length;
  return (
    <section className={classes.card} data-open={session?.state === "open" || undefined} aria-label={name}>
      <div className={classes.head}>
        <h2>{name}</h2>
        {session ? <StateBadge state={session.state} tone={session.state === "ending" ? "warn" : undefined} /> : network?.exclusive && <Badge size="sm" variant="light" color="gray">Exclusive</Badge>}
      </div>
      {entry?.target.comment && <Text size="sm" c="dimmed">{entry.target.comment}</Text>}
      <ul className={classes.lines}>
        {lines.slice(0, 6).map((l) => <li key={l}>{l}</li>)}
        {total > 6 && <li>and {total - Math.min(6, lines.length)} more</li>}
      </ul>
      {network?.instructions && <Text className={classes.note}>{network.instructions}</Text>}
      {session && <Figures s={session} />}
      {error !== undefined && <ErrorBox error={error} />}
      <div className={classes.grow} />
      {session ? (
        <Button variant="default" onClick={() => void stop(session)} loading={busy} disabled={session.state === "ending"} aria-label={`Close ${name}`}>{session.state === "ending" ? "Closing" : "Close"}</Button>
      ) : (
        <Button onClick={() => (entry?.need_reason ? setAsking(true) : void start())} loading={busy} disabled={entry?.need_mfa} aria-label={`Open ${name}`}>{entry?.need_mfa ? "Needs a second factor" : "Open"}</Button>
      )}
      <Reason opened={asking} close={() => setAsking(false)} name={name} start={start} />
    </section>
  );
}

function Figures({ s }: { s: Session }) {
  return (
    <dl className={classes.figures}>
      <div><dt>For</dt><dd className="mono">{s.client_ip}</dd></div>
      <div><dt>Since</dt><dd><Lasting from={s.opened_at} /></dd></div>
      <div><dt>Out</dt><dd><Bytes n={s.bytes_out} /></dd></div>
      <div><dt>In</dt><dd><Bytes n={s.bytes_in} /></dd></div>
    </dl>
  );
}

function Reason({ opened, close, name, start }: { opened: boolean; close: () => void; name: string; start: (reason: string) => Promise<void> }) {
  const [text, setText] = useState("");
  return (
    <Modal opened={opened} onClose={close} title={`Why do you open ${name}?`}>
      <form
        onSubmit={(e) => {
          e.preventDefault();
          close();
          void start(text.trim());
        }}
      >
        <Stack>
          <Textarea label="Reason" description="It is written to the record." value={text} onChange={(e) => setText(e.currentTarget.value)} required maxLength={1000} autosize minRows={2} data-autofocus />
          <Button type="submit" disabled={text.trim() === ""}>Open</Button>
        </Stack>
      </form>
    </Modal>
  );
}
