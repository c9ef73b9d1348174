import { Alert, Anchor, Button, Group, Loader, Select, Skeleton, Stack, Text, Textarea } from "@mantine/core";
import { IconAlertTriangle, IconBan, IconCircleCheck, IconExternalLink, IconForms, IconKey, IconPlayerPlay, IconWorld } from "@tabler/icons-react";
import { keepPreviousData, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useParams } from "@tanstack/react-router";
import { useEffect, useMemo, useState } from "react";
import { api, ask, asError } from "~/api/client";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";
import { useNow } from "~/ui/Time";
import { endSession, openSession, readSession, webKey, type WebSession } from "../../web/api";
import { viewPath } from "../../web/path";
import { Panel } from "../parts/Panel";
import type { Target } from "./draft";
import { type Moment, stepsOf, type TryStep, verdict } from "./steps";
import classes from "./web.module.css";

const icons = { page: IconWorld, blocked: IconBan, credential: IconKey, field: IconForms, request: IconWorld, other: IconWorld } as const;

// Try opens a session of the target and tells step by step how it gets in.
export default function Try() {
  const { id = "" } = useParams({ strict: false }) as { id?: string };
  const q = useQuery({ queryKey: ["target", "one-plain", id], queryFn: ({ signal }) => ask(api.GET("/targets/{id}", { params: { path: { id } }, signal })) });
  const back = <Anchor component={Link} to={`/admin/targets/${id}`} size="sm">{q.data?.name ?? "Target"}</Anchor>;
  return (
    <Page title={q.data ? `Try ${q.data.name}` : "Try a target"} back={back} hint="Opens a session as you, recorded like any other, and shows how it signs in.">
      {q.error ? <ErrorBox error={q.error} again={() => void q.refetch()} /> : q.data ? <Body t={q.data} /> : <Skeleton height={300} radius={12} />}
    </Page>
  );
}

function Body({ t }: { t: Target }) {
  const accounts = useQuery({ queryKey: ["target", "accounts", t.id], queryFn: ({ signal }) => ask(api.GET("/targets/{id}/accounts", { params: { path: { id: t.id } }, signal })) });
  const names = (accounts.data?.items ?? []).filter((a) => !a.disabled).map((a) => a.name);
  const [account, setAccount] = useState<string>();
  const [reason, setReason] = useState("Trying the sign-in");
  const [run, setRun] = useState<{ s?: WebSession; error?: unknown; busy: boolean; since: number }>();
  const chosen = account ?? names[0] ?? "";
  const begin = async () => {
    if (run?.s && run.s.state !== "ended") await endSession(run.s.id).catch(() => undefined);
    setRun({ busy: true, since: Date.now() });
    try {
      const s = await openSession({ target_id: t.id, account: chosen || undefined, reason: reason || undefined, width: 1280, height: 800, time_zone: Intl.DateTimeFormat().resolvedOptions().timeZone });
      setRun({ busy: false, s, since: Date.now() });
    } catch (error) {
      setRun({ busy: false, error, since: Date.now() });
    }
  };
  const refused = run?.error !== undefined && ["denied", "access_denied", "no_grant"].includes(asError(run.error).code);
  return (
    <>
      <Panel>
        <form
          onSubmit={(e) => {
            e.preventDefault();
            void begin();
          }}
        >
          <Group align="flex-end" gap="sm">
            <Select label="Account" data={names.length > 0 ? names : [{ value: "", label: "none" }]} value={chosen} onChange={(a) => setAccount(a ?? "")} allowDeselect={false} disabled={names.length === 0} w={200} />
            <Textarea label="Reason" value={reason} onChange={(e) => setReason(e.currentTarget.value)} autosize minRows={1} maxLength={500} style={{ flex: "1 1 220px" }} />
            <Button type="submit" leftSection={<IconPlayerPlay size={17} />} loading={run?.busy ?? false} data-autofocus>{run?.s ? "Try again" : "Try it"}</Button>
          </Group>
        </form>
        {run?.error !== undefined && (
          <Stack mt="md" gap="xs">
            <ErrorBox error={run.error} />
            {refused && <Text size="sm">A try is a real session: you need a grant for this target yourself. <Anchor component={Link} to={`/admin/targets/${t.id}`}>Add one on the target's page.</Anchor></Text>}
          </Stack>
        )}
      </Panel>
      {run?.s && <Running key={run.s.id} t={t} opened={run.s} since={run.since} />}
    </>
  );
}

function Running({ t, opened, since }: { t: Target; opened: WebSession; since: number }) {
  const session = useQuery({ queryKey: webKey(opened.id), queryFn: () => readSession(opened.id), initialData: opened });
  const s = session.data;
  const over = s.state === "ended";
  const recording = s.recording_id ?? "";
  const { moments, error } = useMoments(recording, over);
  const steps = useMemo(() => stepsOf(moments), [moments]);
  const [chosen, setChosen] = useState<number>();
  const beat = useSettled(moments.length + (over ? 0.5 : 0));
  const now = useNow();
  const [ended, setEnded] = useState<number>();
  useEffect(() => {
    if (over) setEnded((e) => e ?? Date.now());
  }, [over]);
  const seconds = ((ended ?? now) - since) / 1000;
  const v = verdict(moments, t.web?.policy?.recipe, seconds);
  const at = chosen ?? steps.length - 1;
  const step = steps[at];
  const color = { good: "sea", warn: "yellow", bad: "red", busy: "gray" }[v.tone];
  return (
    <>
      <Alert variant="light" color={color} icon={v.tone === "busy" ? <Loader size="xs" /> : v.tone === "good" ? <IconCircleCheck size={20} /> : <IconAlertTriangle size={20} />} title={v.text} aria-live="polite">{v.hint}</Alert>
      <Panel
        title="Steps" hint={over ? s.end_text || "The session has ended." : <>Runs on {s.carrier ?? "a carrier"} through {s.webproxy ?? "a webproxy"}{s.warm ? ", from a browser that was ready" : ""}.</>}
        actions={!over && (
          <>
            <Button size="xs" variant="default" component="a" href={viewPath(s.id)} target="_blank" rel="noopener" leftSection={<IconExternalLink size={16} />}>Use it</Button>
            <Button size="xs" variant="default" onClick={() => void endSession(s.id).then(() => session.refetch())}>End it</Button>
          </>
        )}
      >
        {error !== undefined && <ErrorBox error={error} />}
        {!s.recorded && <Text size="sm" c="dimmed">This session is not recorded, so there are no steps to show. Open it to see for yourself.</Text>}
        <div className={classes.steps}>
          <ol className={classes.list} aria-label="Steps" tabIndex={0}>
            {steps.length === 0 && <li><Text size="sm" c="dimmed" p="sm">Nothing yet.</Text></li>}
            {steps.map((x, i) => <Line key={i} x={x} pressed={i === at} choose={() => setChosen(i === steps.length - 1 ? undefined : i)} />)}
          </ol>
          {recording && <Shot recording={recording} at={step && chosen !== undefined ? step.t + 0.4 : undefined} beat={beat} label={step ? `The browser at “${step.title}”` : "The browser now"} />}
        </div>
      </Panel>
    </>
  );
}

function Line({ x, pressed, choose }: { x: TryStep; pressed: boolean; choose: () => void }) {
  const I = icons[x.what];
  return (
    <li>
      <button type="button" className={classes.step} data-tone={x.tone} aria-pressed={pressed} onClick={choose}>
        <I size={18} aria-hidden />
        <span className={classes.stepText}>{x.title}{x.detail && <small>{x.detail}</small>}</span>
        <span className="nums">{x.t.toFixed(1)} s</span>
      </button>
    </li>
  );
}

// Shot is the picture at a moment; without one the latest there is.
function Shot({ recording, at, beat, label }: { recording: string; at?: number; beat: number; label: string }) {
  const latest = at === undefined;
  const src = `/api/v1/recordings/${encodeURIComponent(recording)}/picture?at=${(at ?? 1e6).toFixed(1)}${latest ? `&n=${beat}` : ""}`;
  // The old picture stays until the next one is there.
  const [shown, setShown] = useState<string>();
  const [failed, setFailed] = useState(false);
  useEffect(() => {
    const img = new Image();
    img.onload = () => {
      setShown(src);
      setFailed(false);
    };
    img.onerror = () => setFailed(true);
    img.src = src;
    return () => {
      img.onload = img.onerror = null;
    };
  }, [src]);
  return <div className={classes.shot}>{shown ? <img src={shown} alt={label} /> : <Text size="sm" c="dimmed" p="md">{failed ? "There is no picture of this moment." : "The picture appears here."}</Text>}</div>;
}

interface Read {
  moments: Moment[];
  next: number;
}

// useMoments follows a recording's timeline: core says when there is more, and
// what is new is read then.
function useMoments(recording: string, over: boolean): { moments: Moment[]; error?: unknown } {
  const client = useQueryClient();
  // A finished recording is ordered by time: it is read anew.
  const key = ["timeline", recording, over];
  const q = useQuery({
    queryKey: key, enabled: recording !== "", placeholderData: keepPreviousData,
    queryFn: async ({ signal }): Promise<Read> => {
      let { moments, next } = client.getQueryData<Read>(key) ?? { moments: [], next: 0 };
      for (let more = true; more; ) {
        const a = await ask(api.GET("/recordings/{id}/timeline", { params: { path: { id: recording }, query: { after: next, limit: 1000 } }, signal }));
        moments = [...moments, ...(a.events ?? [])];
        ({ next, more } = a);
      }
      return { moments, next };
    },
  });
  const missing = q.error !== null && [0, 404].includes(asError(q.error).status);
  return { moments: q.data?.moments ?? none, error: missing ? undefined : (q.error ?? undefined) };
}

const none: Moment[] = [];

// useSettled counts on when a number changes, and a little later again: the
// picture follows what happened.
function useSettled(n: number): number {
  const [beat, setBeat] = useState(0);
  useEffect(() => {
    const later = [0, 700, 2500].map((ms) => setTimeout(() => setBeat((b) => b + 1), ms));
    return () => later.forEach(clearTimeout);
  }, [n]);
  return beat;
}
