import { ActionIcon, Button, Group, Menu, Tooltip } from "@mantine/core";
import { IconChevronDown, IconDots, IconStethoscope } from "@tabler/icons-react";
import type { MouseEvent } from "react";
import { connectable, connectPath, type Entry, type Row, wayOf } from "./connect";

interface Props {
  row: Row;
  connect: (e: Entry) => void;
  explain: () => void;
}

// ConnectButtons: one button where there is one account, else one with a menu.
export function ConnectButtons({ row, connect, explain }: Props) {
  const [first, ...others] = row.entries;
  if (!first) return null;
  const way = wayOf(first);
  const why = way === "none" ? whyNot(first) : undefined;
  return (
    <Group gap={6} wrap="nowrap">
      <Button.Group>
        {why ? (
          <Tooltip label={why} multiline maw={260}>
            <Button size="xs" variant="default" data-disabled aria-disabled onClick={(e) => e.preventDefault()}>{label(first)}</Button>
          </Tooltip>
        ) : connectable(first) ? (
          <Button size="xs" variant="light" component="a" href={connectPath(first)} onClick={(e: MouseEvent) => onClick(e, () => connect(first))} aria-label={`${label(first)} on ${row.target.name}`}>
            {label(first)}
          </Button>
        ) : (
          <Button size="xs" variant="light" onClick={() => connect(first)} aria-label={`${label(first)} on ${row.target.name}`}>{label(first)}</Button>
        )}
        {others.length > 0 && (
          <Menu position="bottom-end">
            <Menu.Target>
              <Button size="xs" variant="light" px={6} aria-label={`Other accounts of ${row.target.name}`}><IconChevronDown size={15} /></Button>
            </Menu.Target>
            <Menu.Dropdown>
              <Menu.Label>Connect as</Menu.Label>
              {row.entries.map((e) => (
                <Menu.Item key={e.account} onClick={() => connect(e)} disabled={wayOf(e) === "none"}>{e.account || "yourself"}</Menu.Item>
              ))}
            </Menu.Dropdown>
          </Menu>
        )}
      </Button.Group>
      <Menu position="bottom-end">
        <Menu.Target>
          <ActionIcon variant="subtle" color="gray" aria-label={`More about ${row.target.name}`}><IconDots size={17} /></ActionIcon>
        </Menu.Target>
        <Menu.Dropdown>
          <Menu.Item leftSection={<IconStethoscope size={16} />} onClick={explain}>Check every step of the way</Menu.Item>
        </Menu.Dropdown>
      </Menu>
    </Group>
  );
}

// onClick leaves a click that wants a new tab to the browser.
function onClick(e: MouseEvent, go: () => void) {
  if (e.metaKey || e.ctrlKey || e.shiftKey || e.button !== 0) return;
  e.preventDefault();
  go();
}

function label(e: Entry): string {
  if (wayOf(e) === "port") return "Open port";
  if (wayOf(e) === "network") return "Open access";
  if (wayOf(e) === "web") return e.account ? `Open as ${e.account.length > 16 ? `${e.account.slice(0, 15)}…` : e.account}` : "Open";
  return e.account ? `Connect as ${e.account.length > 14 ? `${e.account.slice(0, 13)}…` : e.account}` : "Connect";
}

function whyNot(e: Entry): string {
  if (e.target.kind === "web") return "Your role does not include web sessions here.";
  if (e.target.kind === "ssh") return "Your role allows no shell here. Use the caponier command for what it allows.";
  return `The console cannot open ${e.target.kind} targets yet.`;
}
