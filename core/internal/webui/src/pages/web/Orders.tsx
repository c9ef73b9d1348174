import { ActionIcon, Menu, Tooltip } from "@mantine/core";
import { IconDots, IconInfoCircle, IconLock, IconLockOpen, IconPlayerStop } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask } from "~/api/client";
import { Lock, Terminate, useUnlock } from "../connections/actions";
import { useMayAct } from "../connections/RowMenu";
import type { Connection } from "../connections/words";

// Orders is what someone who looks on may do about a session.
export function Orders({ id }: { id: string }) {
  const q = useQuery({ queryKey: ["connection", "one", id], queryFn: ({ signal }) => ask(api.GET("/connections/{id}", { params: { path: { id } }, signal })) });
  return q.data ? <Choices c={q.data} /> : null;
}

function Choices({ c }: { c: Connection }) {
  const may = useMayAct(c);
  const unlock = useUnlock(c.id);
  const [dialog, setDialog] = useState<"terminate" | "lock">();
  const close = () => setDialog(undefined);
  return (
    <>
      <Menu position="bottom-end" withInitialFocusPlaceholder={false}>
        <Menu.Target><Tooltip label="What to do about it"><ActionIcon variant="subtle" color="gray" aria-label="What to do about it"><IconDots size={18} /></ActionIcon></Tooltip></Menu.Target>
        <Menu.Dropdown>
          <Menu.Item component={Link} to={`/connections/${c.id}`} leftSection={<IconInfoCircle size={16} />}>Details</Menu.Item>
          {may.lock && <Menu.Item leftSection={<IconLock size={16} />} onClick={() => setDialog("lock")}>Lock…</Menu.Item>}
          {may.unlock && <Menu.Item leftSection={<IconLockOpen size={16} />} onClick={() => unlock.mutate()}>Unlock</Menu.Item>}
          {may.terminate && <Menu.Item color="red" leftSection={<IconPlayerStop size={16} />} onClick={() => setDialog("terminate")}>Terminate…</Menu.Item>}
        </Menu.Dropdown>
      </Menu>
      <Terminate c={c} opened={dialog === "terminate"} close={close} />
      <Lock c={c} opened={dialog === "lock"} close={close} />
    </>
  );
}
