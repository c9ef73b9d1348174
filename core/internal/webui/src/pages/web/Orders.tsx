import { ActionIcon, Menu, Tooltip } from "@mantine/core";
import { IconDots, IconInfoCircle } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { api, ask } from "~/api/client";
import { useActs } from "../connections/RowMenu";
import type { Connection } from "../connections/words";

// Orders is what someone who looks on may do about a session.
export function Orders({ id }: { id: string }) {
  const q = useQuery({ queryKey: ["connection", "one", id], queryFn: ({ signal }) => ask(api.GET("/connections/{id}", { params: { path: { id } }, signal })) });
  return q.data ? <Choices c={q.data} /> : null;
}

function Choices({ c }: { c: Connection }) {
  const { entries, dialogs } = useActs(c);
  return (
    <>
      <Menu position="bottom-end" withInitialFocusPlaceholder={false}>
        <Menu.Target><Tooltip label="What to do about it"><ActionIcon variant="subtle" color="gray" aria-label="What to do about it"><IconDots size={18} /></ActionIcon></Tooltip></Menu.Target>
        <Menu.Dropdown>
          <Menu.Item component={Link} to={`/connections/${c.id}`} leftSection={<IconInfoCircle size={16} />}>Details</Menu.Item>
          {entries}
        </Menu.Dropdown>
      </Menu>
      {dialogs}
    </>
  );
}
