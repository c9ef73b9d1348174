import { ActionIcon, Group, Menu, Text, Tooltip } from "@mantine/core";
import {
  IconAccessible, IconClipboard, IconClock, IconCopy, IconEye, IconFolders, IconLetterCase, IconLock, IconMaximize, IconMinus, IconPlayerRecordFilled, IconPlus, IconSearch, IconSettings,
} from "@tabler/icons-react";
import { type ReactNode, type RefObject, useEffect, useState, useSyncExternalStore } from "react";
import { canFullScreen, canLock, enter, exit } from "./keyboard";
import { prefs } from "./prefs";
import type { Session } from "./session";
import classes from "./terminal.module.css";

interface Props {
  session: Session;
  frame: RefObject<HTMLDivElement | null>;
  files: boolean;
  setFiles: (on: boolean) => void;
  find: () => void;
}

// Bar says what holds for the session and has its tools.
export function Bar({ session, frame, files, setFiles, find }: Props) {
  const set = useSyncExternalStore(prefs.subscribe, prefs.get);
  const [full, setFull] = useState(false);
  useEffect(() => {
    const look = () => {
      setFull(document.fullscreenElement !== null);
      if (document.fullscreenElement === null) void exit();
    };
    document.addEventListener("fullscreenchange", look);
    return () => document.removeEventListener("fullscreenchange", look);
  }, []);
  const st = session.status.state;
  const live = session.live && session.status.phase !== "opening";
  return (
    <Group className={classes.bar} gap={6} wrap="nowrap">
      <Group gap={10} wrap="nowrap" className={classes.marks}>
        {live && (st?.recorded ? (
          <Mark tone="bad" icon={<IconPlayerRecordFilled size={14} className={classes.rec} />} tip="What happens in this terminal is recorded.">Recording</Mark>
        ) : (
          <Mark tone="off" icon={<IconPlayerRecordFilled size={14} />} tip="This terminal is not recorded.">Not recorded</Mark>
        ))}
        {st?.locked && <Mark tone="warn" icon={<IconLock size={14} />} tip={st.lock_text ?? ""}>Locked</Mark>}
        {live && st?.watchers && st.watchers.length > 0 && (
          <Mark tone="warn" icon={<IconEye size={14} />} tip={`Watched by ${st.watchers.join(", ")}`}>{st.watchers.length === 1 ? `${st.watchers[0]} is watching` : `${st.watchers.length} are watching`}</Mark>
        )}
        {live && st?.ends_at && <Ends at={st.ends_at} />}
      </Group>
      <Group gap={2} wrap="nowrap">
        <Tool label="Copy the selection (Ctrl+Shift+C)" icon={<IconCopy size={18} />} run={() => void session.copy()} narrow />
        <Tool label="Paste (Ctrl+Shift+V)" icon={<IconClipboard size={18} />} run={() => void session.pasteClipboard()} narrow />
        <Tool label="Search (Ctrl+Shift+F)" icon={<IconSearch size={18} />} run={find} />
        <Tool label={files ? "Hide files" : "Files: upload and download"} icon={<IconFolders size={18} />} run={() => setFiles(!files)} pressed={files} disabled={!live || !session.id} />
        {canFullScreen() && (
          <Tool
            label={full ? "Leave full screen" : canLock() ? "Full screen: all keys go to the terminal (Ctrl+W, Ctrl+T too); hold Esc to leave" : "Full screen"} icon={<IconMaximize size={18} />} pressed={full}
            run={() => void (full ? exit() : frame.current && enter(frame.current).then(() => session.term.focus(), () => undefined))}
          />
        )}
        <Menu position="bottom-end" closeOnItemClick={false} withinPortal={!full}>
          <Menu.Target><ActionIcon variant="subtle" color="gray" aria-label="Terminal settings"><IconSettings size={18} /></ActionIcon></Menu.Target>
          <Menu.Dropdown>
            <Menu.Label>Text size: {set.fontSize}</Menu.Label>
            <Menu.Item leftSection={<IconPlus size={16} />} rightSection={<Text size="xs" c="dimmed">Ctrl +</Text>} onClick={() => prefs.zoom(1)}>Larger</Menu.Item>
            <Menu.Item leftSection={<IconMinus size={16} />} rightSection={<Text size="xs" c="dimmed">Ctrl −</Text>} onClick={() => prefs.zoom(-1)}>Smaller</Menu.Item>
            <Menu.Item leftSection={<IconLetterCase size={16} />} rightSection={<Text size="xs" c="dimmed">Ctrl 0</Text>} onClick={() => prefs.zoom(0)}>Usual size</Menu.Item>
            <Menu.Divider />
            <Menu.Label>Colours</Menu.Label>
            {(["auto", "light", "dark"] as const).map((s) => (
              <Menu.Item key={s} role="menuitemradio" aria-checked={set.scheme === s} fw={set.scheme === s ? 700 : undefined} onClick={() => prefs.set({ scheme: s })}>
                {{ auto: "As the console", light: "Light", dark: "Dark" }[s]}
              </Menu.Item>
            ))}
            <Menu.Divider />
            <Menu.Item leftSection={<IconAccessible size={16} />} role="menuitemcheckbox" aria-checked={set.reader} onClick={() => prefs.set({ reader: !set.reader })}>
              {set.reader ? "Screen reader support is on" : "Screen reader support is off"}
            </Menu.Item>
            <Menu.Label>Ctrl+Shift+Home leaves the terminal by keyboard</Menu.Label>
          </Menu.Dropdown>
        </Menu>
      </Group>
    </Group>
  );
}

function Mark({ tone, icon, tip, children }: { tone: string; icon: ReactNode; tip: string; children: ReactNode }) {
  return (
    <Tooltip label={tip} disabled={!tip} multiline maw={320}>
      <span className={classes.mark} data-tone={tone} tabIndex={0}>{icon}<span>{children}</span></span>
    </Tooltip>
  );
}

function Tool({ label, icon, run, pressed, disabled, narrow }: { label: string; icon: ReactNode; run: () => void; pressed?: boolean; disabled?: boolean; narrow?: boolean }) {
  return (
    <Tooltip label={label} multiline maw={280}>
      <ActionIcon variant={pressed ? "light" : "subtle"} color={pressed ? undefined : "gray"} aria-label={label} aria-pressed={pressed} disabled={disabled} onClick={run} visibleFrom={narrow ? "sm" : undefined}>{icon}</ActionIcon>
    </Tooltip>
  );
}

// Ends counts down when a limit will end the session, by the minute.
function Ends({ at }: { at: string }) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const t = setInterval(() => setNow(Date.now()), 10_000);
    return () => clearInterval(t);
  }, []);
  const left = Math.max(0, new Date(at).getTime() - now);
  const minutes = Math.ceil(left / 60_000);
  return <Mark tone={minutes <= 5 ? "warn" : "off"} icon={<IconClock size={14} />} tip={`The longest permitted time ends at ${new Date(at).toLocaleTimeString("en-GB")}.`}>{minutes > 90 ? `${Math.round(minutes / 60)} h left` : `${minutes} min left`}</Mark>;
}
