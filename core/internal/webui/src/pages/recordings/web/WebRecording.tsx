import { ActionIcon, Badge, Button, Center, Group, Loader, SegmentedControl, Switch, Tabs, Text, Tooltip } from "@mantine/core";
import { IconMaximize, IconMovie, IconPhoto, IconPlayerPauseFilled, IconPlayerPlayFilled } from "@tabler/icons-react";
import { useEffect, useMemo, useRef, useState } from "react";
import { ErrorBox } from "~/ui/ErrorBox";
import { Files } from "../Files";
import { Keeping } from "../Keeping";
import shared from "../recordings.module.css";
import { clock, type Recording } from "../words";
import { Bar } from "./Bar";
import { EventList } from "./EventList";
import { addressAt, indexAt } from "./events";
import { Export } from "./Export";
import { pictureUrl } from "./source";
import { Picture, type Stage } from "./Stage";
import { usePlayer } from "./usePlayer";
import classes from "./web.module.css";

const speeds = ["0.5", "1", "2", "4", "8"];

// WebRecording plays a web session: its picture, and beside it everything that
// happened in it. A click on an event shows the moment.
export default function WebRecording({ r, startAt, startText }: { r: Recording; startAt: number; startText: string }) {
  const stage = useRef<Stage>(null);
  const [exporting, setExporting] = useState(false);
  const full = useRef<HTMLDivElement>(null);
  const search = useRef<HTMLInputElement>(null);
  const p = usePlayer(r, stage, startAt);
  const { state, map, events } = p;
  const address = useMemo(() => addressAt(events, state.t), [events, state.t]);
  const [speed, setSpeed] = useState("1");
  const [skip, setSkip] = useState(true);
  useEffect(() => p.tune(Number(speed), skip), [p.ready, speed, skip]);

  const onKey = (e: React.KeyboardEvent) => {
    const el = e.target as HTMLElement;
    if (e.ctrlKey || e.metaKey || e.altKey || (el.closest("input, textarea, [role=tab], [role=radiogroup]") && e.key !== "Escape")) return;
    if ((e.key === " " || e.key === "Enter") && el.closest("button, a")) return;
    const by = (n: number) => void p.seek(state.t + n);
    const keys: Record<string, () => void> = {
      " ": () => p.toggle(), k: () => p.toggle(), ArrowLeft: () => by(-5), ArrowRight: () => by(5), j: () => by(-15), l: () => by(15), Home: () => void p.seek(0), End: () => void p.seek(state.duration),
      ".": () => p.step(), ",": () => by(-0.1), f: () => fullScreen(full.current),
      n: () => jumpEvent(1), p: () => jumpEvent(-1), "/": () => search.current?.focus(),
      "<": () => shift(-1), ">": () => shift(1),
    };
    const act = keys[e.key];
    if (!act) return;
    e.preventDefault();
    act();
  };
  const jumpEvent = (by: 1 | -1) => {
    // Backwards: to the one before the present one.
    const i = by > 0 ? indexAt(events, state.t) + 1 : indexAt(events, state.t - 0.5);
    const m = events[i];
    if (m) void p.seek(m.t);
  };
  const shift = (by: number) => setSpeed((s) => speeds[Math.min(Math.max(speeds.indexOf(s) + by, 0), speeds.length - 1)] ?? s);

  return (
    <div className={shared.watch} onKeyDown={onKey}>
      <div className={shared.stage}>
        <div ref={full} className={classes.player} tabIndex={-1}>
          <div className={classes.address} title={address}><span>{address || " "}</span>{map?.live && <Badge size="sm" color="red" variant={state.following ? "filled" : "light"} component="button" type="button" onClick={() => void p.follow()}>Live</Badge>}</div>
          <div className={classes.frame} style={map ? { aspectRatio: `${map.width} / ${map.height}` } : undefined} onClick={() => p.toggle()}>
            {map && map.frames === 0 && !map.live ? <Center h="100%"><Text c="dimmed">This recording has no picture.</Text></Center>
              : map ? <Picture ref={stage} width={map.width} height={map.height} ready={p.begin} />
              : !p.error && <Center h="100%"><Loader type="dots" role="status" aria-label="Loading" /></Center>}
            {state.loading && map && <div className={classes.busy}><Loader type="dots" role="status" aria-label="Loading" /></div>}
          </div>
          <Bar t={state.t} duration={state.duration} activity={map?.activity ?? []} events={p.marks} seek={(t) => void p.seek(t)} />
          <Group gap="sm" className={classes.controls}>
            <ActionIcon size="lg" variant="filled" aria-label={state.playing ? "Pause" : "Play"} onClick={() => p.toggle()}>{state.playing ? <IconPlayerPauseFilled size={18} /> : <IconPlayerPlayFilled size={18} />}</ActionIcon>
            <span className={classes.clock}><span className="nums">{clock(state.t)}</span> / <span className="nums">{clock(state.duration)}</span></span>
            <SegmentedControl aria-label="Speed" size="xs" value={speed} onChange={setSpeed} data={speeds.map((v) => ({ value: v, label: `${v}×` }))} />
            <Switch label="Skip idle time" checked={skip} onChange={(e) => setSkip(e.currentTarget.checked)} size="sm" />
            <span className={classes.grow} />
            <Tooltip label="This picture as a PNG file"><ActionIcon component="a" href={pictureUrl(r.id, state.t)} download={`${r.target_name}-${clock(state.t).replaceAll(":", "")}.png`} variant="default" size="lg" aria-label="Save this picture"><IconPhoto size={18} /></ActionIcon></Tooltip>
            <Button variant="default" size="sm" leftSection={<IconMovie size={17} />} onClick={() => setExporting(true)}>Video</Button>
            <Tooltip label="Full screen (F)"><ActionIcon variant="default" size="lg" aria-label="Full screen" onClick={() => fullScreen(full.current)}><IconMaximize size={18} /></ActionIcon></Tooltip>
          </Group>
        </div>
        {(p.error ?? state.error) && <ErrorBox error={p.error ?? state.error} again={p.again} />}
        <Text size="xs" c="dimmed" mt={6} visibleFrom="sm">Space plays and pauses, ← → 5 s, J L 15 s, N P next and previous event, . next picture, &lt; &gt; speed, / search, F full screen.</Text>
      </div>
      <div className={`${shared.side} ${classes.side}`}>
        <Tabs defaultValue="events" keepMounted={false} className={classes.tabs}>
          <Tabs.List>
            <Tabs.Tab px="sm" value="events">Events</Tabs.Tab>
            <Tabs.Tab px="sm" value="files">Files</Tabs.Tab>
            <Tabs.Tab px="sm" value="keeping">Keeping</Tabs.Tab>
          </Tabs.List>
          <Tabs.Panel value="events"><EventList events={events} t={state.t} start={startText} jump={(t) => void p.seek(t)} search={search} /></Tabs.Panel>
          <Tabs.Panel value="files"><Files id={r.id} /></Tabs.Panel>
          <Tabs.Panel value="keeping"><Keeping r={r} /></Tabs.Panel>
        </Tabs>
      </div>
      {exporting && <Export id={r.id} t={state.t} duration={state.duration} close={() => setExporting(false)} />}
    </div>
  );
}

function fullScreen(el: HTMLElement | null): void {
  if (document.fullscreenElement) void document.exitFullscreen();
  else void el?.requestFullscreen().catch(() => undefined); // not allowed here: nothing to do
}
