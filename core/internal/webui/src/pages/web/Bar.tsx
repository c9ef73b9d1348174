import { ActionIcon, Group, Menu, Text, Tooltip } from "@mantine/core";
import { IconArrowsMaximize, IconClipboard, IconClock, IconEye, IconFolders, IconKeyboard, IconLock, IconMaximize, IconPlayerRecordFilled, IconPower, IconScaleOutline, IconVolume, IconVolumeOff } from "@tabler/icons-react";
import { type ReactNode, useEffect, useState } from "react";
import { Confirm } from "~/ui/Confirm";
import { useNow } from "~/ui/Time";
import { canLock, exit } from "../terminal/keyboard";
import { endSession, type WebSession } from "./api";
import { quality } from "./codes";
import { specialsOf } from "./keys";
import { leftText } from "./limits";
import { Orders } from "./Orders";
import { useSound } from "./sound";
import type { Picture } from "./useScreen";
import { Watchers } from "./Watchers";
import classes from "./web.module.css";

export type Side = "files" | "clipboard" | undefined;

interface Props {
  s: WebSession;
  picture: Picture;
  watch: boolean;
  ended: boolean;
  side: Side;
  setSide: (s: Side) => void;
  scaled: boolean;
  setScaled: (on: boolean) => void;
  may: { in: boolean; out: boolean; files: boolean };
  out?: { given: boolean };
  toggleFull?: () => void;
}

// Bar says what holds for the session and has its tools.
export function Bar({ s, picture, watch, ended, side, setSide, scaled, setScaled, may, out, toggleFull }: Props) {
  const [full, setFull] = useState(false);
  const [ending, setEnding] = useState(false);
  useEffect(() => {
    const look = () => {
      setFull(document.fullscreenElement !== null);
      if (document.fullscreenElement === null) void exit();
    };
    document.addEventListener("fullscreenchange", look);
    return () => document.removeEventListener("fullscreenchange", look);
  }, []);
  const live = picture.state.at === "live";
  const open = (what: Side) => setSide(side === what ? undefined : what);
  const fullHint = full ? "Leave full screen" : canLock() && !watch ? "Full screen: Ctrl+W, Ctrl+T and Ctrl+N go to the session too; hold Esc to leave" : watch ? "Full screen" : "Full screen. This browser keeps Ctrl+W, Ctrl+T and Ctrl+N for itself: use the key menu";
  return (
    <Group className={classes.bar} gap={6} wrap="nowrap" role="toolbar" aria-label="Session">
      <Text fw={600} size="sm" className={classes.name} title={s.target_name}>{s.target_name}</Text>
      <Group gap={10} wrap="nowrap" className={classes.marks}>
        {(watch ? s.user_name : s.account) && <Text size="sm" c="dimmed" className={classes.wide}>{watch ? s.user_name : s.account}</Text>}
        {!ended && (s.recorded
          ? <Mark tone="bad" icon={<IconPlayerRecordFilled size={14} className={classes.rec} />} tip={watch ? "The session is recorded." : "What happens in this session is recorded."}>Recording</Mark>
          : <Mark tone="off" icon={<IconPlayerRecordFilled size={14} />} tip="This session is not recorded.">Not recorded</Mark>)}
        {s.locked && !ended && <Mark tone="warn" icon={<IconLock size={14} />} tip={s.lock_text ?? ""}>Locked</Mark>}
        {!ended && <Watchers s={s}>{(text, tip) => <Mark tone="warn" icon={<IconEye size={14} />} tip={tip}>{text}</Mark>}</Watchers>}
        {!ended && s.ends_at && <Ends at={s.ends_at} />}
        {live && <Quality ms={picture.round} />}
      </Group>
      {!ended && (
        <Group gap={2} wrap="nowrap">
          {(may.in || may.out) && <Tool label={side === "clipboard" ? "Hide the clipboard" : "Clipboard"} icon={<IconClipboard size={18} />} run={() => open("clipboard")} pressed={side === "clipboard"} dot={out !== undefined && !out.given} />}
          {may.files && <Tool label={side === "files" ? "Hide files" : "Files: upload and download"} icon={<IconFolders size={18} />} run={() => open("files")} pressed={side === "files"} />}
          {s.policy.sound && !s.locked && <SoundTool id={s.id} watch={watch} />}
          {!watch && (
            <Menu position="bottom-end" withinPortal={!full} withInitialFocusPlaceholder={false}>
              <Menu.Target><Tooltip label="Special keys"><ActionIcon variant="subtle" color="gray" aria-label="Special keys" disabled={!live}><IconKeyboard size={18} /></ActionIcon></Tooltip></Menu.Target>
              <Menu.Dropdown mah="70dvh" className={classes.menu}>
                <Menu.Label>Press in the session</Menu.Label>
                {specialsOf(s.engine).map((k) => <Menu.Item key={k.label} rightSection={<Text size="xs" c="dimmed">{k.hint}</Text>} onClick={() => setTimeout(() => (picture.screen.current?.press(k.keys), picture.screen.current?.focus()))}>{k.label}</Menu.Item>)}
                <Menu.Divider />
                <Menu.Label>Ctrl+Alt+Home leaves the picture by keyboard{canLock() ? "" : ". This browser keeps Ctrl+W, Ctrl+T and Ctrl+N"}</Menu.Label>
              </Menu.Dropdown>
            </Menu>
          )}
          {!watch && <Tool label={scaled ? "The picture is scaled; let the session follow the window" : "The session follows the window; keep its size and scale the picture"} icon={scaled ? <IconScaleOutline size={18} /> : <IconArrowsMaximize size={18} />} run={() => setScaled(!scaled)} pressed={scaled} narrow />}
          {toggleFull && <Tool label={fullHint} icon={<IconMaximize size={18} />} run={toggleFull} pressed={full} />}
          {watch && <Orders id={s.id} />}
          {!watch && <Tool label="End the session" icon={<IconPower size={18} />} run={() => setEnding(true)} />}
        </Group>
      )}
      <Confirm opened={ending} close={() => setEnding(false)} title="End this session?" action="End it" danger run={() => endSession(s.id)}>
        The browser and everything in it is removed. What you did not download is gone.
      </Confirm>
    </Group>
  );
}

function Mark({ tone, icon, tip, children }: { tone: string; icon: ReactNode; tip: string; children: ReactNode }) {
  return (
    <Tooltip label={tip} disabled={!tip} multiline maw={320}>
      <span className={classes.mark} data-tone={tone}>{icon}<span className={classes.wide}>{children}</span></span>
    </Tooltip>
  );
}

function Tool({ label, icon, run, pressed, narrow, dot }: { label: string; icon: ReactNode; run: () => void; pressed?: boolean; narrow?: boolean; dot?: boolean }) {
  return (
    <Tooltip label={label} multiline maw={280}>
      <ActionIcon variant={pressed ? "light" : "subtle"} color={pressed ? undefined : "gray"} aria-label={label} aria-pressed={pressed} onClick={run} visibleFrom={narrow ? "sm" : undefined} className={classes.tool}>
        {icon}{dot && <span className={classes.dot} aria-hidden />}
      </ActionIcon>
    </Tooltip>
  );
}

// SoundTool lets the session be heard. It begins silent: browsers play nothing
// before a click, and people should know when they are heard along with it.
function SoundTool({ id, watch }: { id: string; watch: boolean }) {
  const [on, setOn] = useState(false);
  const sound = useSound(id, watch, on);
  const refused = sound?.at === "refused";
  const label = refused ? `No sound: ${sound.text}` : on ? "Turn the sound off" : "Turn the sound on. It is not recorded";
  return (
    <span data-sound={sound?.at === "on" ? (sound.playing ? "playing" : "quiet") : (sound?.at ?? "off")}>
      <Tool label={label} icon={on && !refused ? <IconVolume size={18} /> : <IconVolumeOff size={18} />} run={() => setOn(!on)} pressed={on && !refused} />
    </span>
  );
}

function Ends({ at }: { at: string }) {
  const left = Math.max(0, (Date.parse(at) - useNow()) / 1000);
  return <Mark tone={left < 300 ? "warn" : "off"} icon={<IconClock size={14} />} tip={`The longest permitted time ends at ${new Date(at).toLocaleTimeString("en-GB")}.`}>{leftText(left)} left</Mark>;
}

// Quality is how far away the browser feels.
function Quality({ ms }: { ms?: number }) {
  const q = quality(ms);
  if (!q || ms === undefined) return null;
  const text = `${q.word}: ${Math.round(ms)} ms to the session and back`;
  return (
    <Tooltip label={text}>
      <span className={classes.quality} data-bars={q.bars} role="img" aria-label={text}><i /><i /><i /></span>
    </Tooltip>
  );
}
