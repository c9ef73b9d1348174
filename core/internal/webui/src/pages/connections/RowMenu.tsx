import { ActionIcon, Menu } from "@mantine/core";
import { IconBrowser, IconDots, IconEye, IconInfoCircle, IconLock, IconLockOpen, IconMovie, IconPlayerStop } from "@tabler/icons-react";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { useSession } from "~/app/session";
import { Lock, Terminate, useUnlock } from "./actions";
import { viewPath } from "../web/path";
import { type Connection, live, watchPath } from "./words";

// mayAct tells what this person is offered on a connection.
export function useMayAct(c: Connection) {
  const { me, can } = useSession();
  const own = c.user_id === me.user.id;
  const on = live(c);
  const manage = can("connections:manage");
  return {
    terminate: on && (own || manage),
    lock: on && manage && !own && c.lockable && !c.locked_at,
    unlock: Boolean(c.locked_at) && manage && !own,
    watch: on && c.lockable && !own && can("connections:watch"),
    use: on && own && c.kind === "web",
    play: Boolean(c.recording_id) && (own || can("recordings:view")),
  };
}

// useActs are the entries of a menu that lock, unlock and end a connection, and
// the dialogs they open.
export function useActs(c: Connection) {
  const may = useMayAct(c);
  const unlock = useUnlock(c.id);
  const [dialog, setDialog] = useState<"terminate" | "lock">();
  const close = () => setDialog(undefined);
  return {
    may,
    entries: (
      <>
        {may.lock && <Menu.Item leftSection={<IconLock size={16} />} onClick={() => setDialog("lock")}>Lock…</Menu.Item>}
        {may.unlock && <Menu.Item leftSection={<IconLockOpen size={16} />} onClick={() => unlock.mutate()}>Unlock</Menu.Item>}
        {may.terminate && <Menu.Item color="red" leftSection={<IconPlayerStop size={16} />} onClick={() => setDialog("terminate")}>Terminate…</Menu.Item>}
      </>
    ),
    dialogs: (
      <>
        <Terminate c={c} opened={dialog === "terminate"} close={close} />
        <Lock c={c} opened={dialog === "lock"} close={close} />
      </>
    ),
  };
}

export function RowMenu({ c }: { c: Connection }) {
  const { may, entries, dialogs } = useActs(c);
  return (
    <>
      <Menu position="bottom-end">
        <Menu.Target>
          <ActionIcon variant="subtle" color="gray" aria-label={`Actions on the connection of ${c.user_name} to ${c.target_name}`}><IconDots size={17} /></ActionIcon>
        </Menu.Target>
        <Menu.Dropdown>
          <Menu.Item component={Link} to={`/connections/${c.id}`} leftSection={<IconInfoCircle size={16} />}>Details</Menu.Item>
          {may.watch && (c.kind === "web" ? <Menu.Item component="a" href={watchPath(c)} target="_blank" rel="noopener" leftSection={<IconEye size={16} />}>Watch live</Menu.Item> : <Menu.Item component={Link} to={watchPath(c)} leftSection={<IconEye size={16} />}>Watch live</Menu.Item>)}
          {may.use && <Menu.Item component="a" href={viewPath(c.id)} target="_blank" rel="noopener" leftSection={<IconBrowser size={16} />}>Open its window</Menu.Item>}
          {may.play && <Menu.Item component={Link} to={`/recordings/${c.recording_id}`} leftSection={<IconMovie size={16} />}>Play recording</Menu.Item>}
          {entries}
        </Menu.Dropdown>
      </Menu>
      {dialogs}
    </>
  );
}
