import { Anchor, Button, Center, Group, Loader, SegmentedControl, Select, Switch, Tabs, Text } from "@mantine/core";
import { IconDownload } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link, useParams, useSearch } from "@tanstack/react-router";
import { lazy, Suspense, useMemo, useRef, useState } from "react";
import { api, ask, offline, problem } from "~/api/client";
import { Loading } from "~/app/Unreachable";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";
import { StateBadge } from "~/ui/StateBadge";
import { Time } from "~/ui/Time";
import { type Cast, parseCast } from "./cast";
import { Events } from "./Events";
import { Files } from "./Files";
import { Keeping } from "./Keeping";
import type { Handle } from "./Screen";
import classes from "./recordings.module.css";
import { Transcript } from "./Transcript";
import { castUrl, clock, type Recording, states } from "./words";

const Screen = lazy(() => import("./Screen"));
const WebRecording = lazy(() => import("./web/WebRecording"));

export default function RecordingPage() {
  const { id = "" } = useParams({ strict: false }) as { id?: string };
  const q = useQuery({ queryKey: ["recording", "one", id], queryFn: ({ signal }) => ask(api.GET("/recordings/{id}", { params: { path: { id } }, signal })) });
  if (q.data) return <One key={id} r={q.data} />;
  return <Page title="Recording" back={<Back />}>{q.error ? <ErrorBox error={q.error} again={() => void q.refetch()} /> : <Loading />}</Page>;
}

const Back = () => <Anchor component={Link} to="/recordings" size="sm">← Recordings</Anchor>;

// readCast reads the whole recording; core checks every block of it on the way.
async function readCast(id: string, signal: AbortSignal): Promise<Cast> {
  const response = await fetch(castUrl(id), { signal }).catch((e: unknown) => {
    if (signal.aborted) throw e;
    throw offline();
  });
  if (!response.ok) throw problem(response, await response.json().catch(() => undefined));
  return parseCast(await response.text());
}

const none: [number, string][] = [];

function One({ r }: { r: Recording }) {
  const search = useSearch({ strict: false }) as { t?: number; q?: string };
  const web = r.kind === "web";
  const state = states[r.status];
  return (
    <Page
      title={r.account ? `${r.account} on ${r.target_name}` : r.target_name} back={<Back />}
      hint={<Group gap="sm"><StateBadge state={r.status} {...state} /><span>{r.user_name}, <Time at={r.started_at} />{r.status !== "recording" && `, ${clock(r.duration_s)}`}</span></Group>}
      actions={
        <>
          <Button component={Link} to={`/connections/${r.connection_id}`} variant="default">Connection</Button>
          {r.status !== "expired" && !web && <Button component="a" href={castUrl(r.id)} download={`${r.target_name}-${r.started_at.slice(0, 19).replaceAll(":", "")}.cast`} variant="default" leftSection={<IconDownload size={17} />}>Download</Button>}
        </>
      }
    >
      {r.problem && <ErrorBox error={new Error(r.problem)} />}
      {!web ? <Terminal r={r} />
        : r.status === "expired" ? <Text c="dimmed">{state.text}</Text>
        : <Suspense fallback={<Loading />}><WebRecording r={r} startAt={Number(search.t) || 0} startText={search.q ?? ""} /></Suspense>}
    </Page>
  );
}

// Terminal plays what stood on a terminal.
function Terminal({ r }: { r: Recording }) {
  const search = useSearch({ strict: false }) as { t?: number; q?: string };
  const handle = useRef<Handle>(null);
  const [speed, setSpeed] = useState("1");
  const [skip, setSkip] = useState(true);
  const [startAt] = useState(Number(search.t) || 0);
  const cast = useQuery({
    // A finished recording does not change; a live one is read again on demand.
    queryKey: ["cast", r.id], queryFn: ({ signal }) => readCast(r.id, signal), enabled: r.status !== "expired", gcTime: 0, retry: false,
  });
  const marks = useMemo(() => cast.data?.events.filter((e) => e[1] === "m" && !e[2].startsWith("integrity:")).map((e): [number, string] => [e[0], e[2].split(" ")[0] ?? ""]) ?? none, [cast.data]);
  const jump = (seconds: number) => handle.current?.jump(seconds);
  const state = states[r.status];
  return (
      <div className={classes.watch}>
        <div className={classes.stage}>
          <div className={classes.frame}>
            {r.status === "expired" ? <Center h="100%"><Text c="dimmed">{state.text}</Text></Center>
              : cast.error ? <div className={classes.pad}><ErrorBox error={cast.error} again={() => void cast.refetch()} /></div>
              : cast.data ? (
                <Suspense fallback={<Center h="100%"><Loader type="dots" /></Center>}>
                  <Screen ref={handle} cast={cast.data} speed={Number(speed)} skipPauses={skip} startAt={startAt} marks={marks} />
                </Suspense>
              ) : <Center h="100%"><Loader type="dots" role="status" aria-label="Loading" /></Center>}
          </div>
          <Group gap="md" className={classes.controls}>
            <SegmentedControl aria-label="Speed" size="xs" value={speed} onChange={setSpeed} visibleFrom="xs" data={["0.5", "1", "2", "4", "8"].map((v) => ({ value: v, label: `${v}×` }))} />
            <Select aria-label="Speed" size="xs" w={80} value={speed} onChange={(v) => setSpeed(v ?? "1")} hiddenFrom="xs" allowDeselect={false} data={["0.5", "1", "2", "4", "8"].map((v) => ({ value: v, label: `${v}×` }))} />
            <Switch label="Shorten pauses to 1 s" checked={skip} onChange={(e) => setSkip(e.currentTarget.checked)} size="sm" />
            {r.status === "recording" && <Button size="compact-sm" variant="default" loading={cast.isFetching} onClick={() => void cast.refetch()}>Read what came since</Button>}
          </Group>
        </div>
        <div className={classes.side}>
          <Tabs defaultValue="transcript" keepMounted={false}>
            <Tabs.List>
              <Tabs.Tab px="sm" value="transcript">Search</Tabs.Tab>
              <Tabs.Tab px="sm" value="events">Events</Tabs.Tab>
              <Tabs.Tab px="sm" value="files">Files</Tabs.Tab>
              <Tabs.Tab px="sm" value="keeping">Keeping</Tabs.Tab>
            </Tabs.List>
            <Tabs.Panel value="transcript"><Transcript id={r.id} start={search.q ?? ""} jump={jump} /></Tabs.Panel>
            <Tabs.Panel value="events"><Events id={r.id} jump={jump} /></Tabs.Panel>
            <Tabs.Panel value="files"><Files id={r.id} /></Tabs.Panel>
            <Tabs.Panel value="keeping"><Keeping r={r} /></Tabs.Panel>
          </Tabs>
        </div>
      </div>
  );
}
