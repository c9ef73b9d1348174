import { Button, Group, Skeleton } from "@mantine/core";
import { type Icon, IconPlus } from "@tabler/icons-react";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { type ReactNode, useState } from "react";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { Empty } from "~/ui/Empty";
import { ErrorBox } from "~/ui/ErrorBox";
import { Danger } from "../parts/Danger";
import { Panel } from "../parts/Panel";
import table from "../parts/Table.module.css";

interface Way {
  id: string;
  name: string;
  enabled: boolean;
}

// Act is a dialog that is open: to add one, or about one.
export interface Act<T> {
  what: string;
  way?: T;
}

interface Props<T extends Way> {
  title: string;
  hint: string;
  label: string; // of the table, for screen readers
  add: string; // the verb of the button
  empty: { icon: Icon; title: string; text: string };
  topic: string;
  topics?: readonly string[]; // what else changes when one is removed
  list: (signal: AbortSignal) => Promise<{ items?: T[] | null }>;
  turn: (way: T) => Promise<unknown>; // on or off
  remove: (way: T) => Promise<unknown>;
  removing: { title: string; text: string };
  columns: readonly { head: string; cell: (way: T) => ReactNode }[];
  more: { what: string; label: string }; // an action of its own
  dialogs: (act: Act<T> | undefined, open: (act: Act<T>) => void, close: () => void) => ReactNode;
}

// Ways lists ways into the console of one kind, and adds, switches and removes
// them. Switching one off ends the sessions it brought, so it asks first.
export function Ways<T extends Way>(p: Props<T>) {
  const { can } = useSession();
  const manage = can("settings:manage");
  const client = useQueryClient();
  const [act, setAct] = useState<Act<T>>();
  const close = () => setAct(undefined);
  const q = useQuery({ queryKey: [p.topic, "list"], queryFn: ({ signal }) => p.list(signal) });
  const again = () => client.invalidateQueries({ queryKey: [p.topic] });
  const turn = useMutation({ mutationFn: p.turn, onSettled: again });
  const list = q.data?.items ?? [];
  const way = act?.way;
  const button = (what: string, label: string, x: T) => <Button size="compact-xs" variant="default" onClick={() => setAct({ what, way: x })} aria-label={`${label}: ${x.name}`}>{label}</Button>;
  return (
    <Panel title={p.title} hint={p.hint} actions={manage && <Button size="xs" leftSection={<IconPlus size={16} />} onClick={() => setAct({ what: "add" })}>{p.add}</Button>}>
      {q.error && <ErrorBox error={q.error} again={() => void q.refetch()} />}
      {turn.error && <ErrorBox error={turn.error} />}
      {q.isPending && <Skeleton height={120} />}
      {q.data && list.length === 0 && <Empty icon={p.empty.icon} title={p.empty.title}>{p.empty.text}</Empty>}
      {list.length > 0 && (
        <div className={table.scroll} tabIndex={0} role="region" aria-label={p.label}>
          <table className={table.plain} data-roomy>
            <thead><tr>{p.columns.map((c) => <th key={c.head} scope="col">{c.head}</th>)}{manage && <th scope="col" data-end>Actions</th>}</tr></thead>
            <tbody>
              {list.map((x) => (
                <tr key={x.id}>
                  {p.columns.map((c) => <td key={c.head}>{c.cell(x)}</td>)}
                  {manage && (
                    <td data-end>
                      <Group gap={6} justify="flex-end" wrap="nowrap">
                        {button(p.more.what, p.more.label, x)}
                        {button("edit", "Edit", x)}
                        {x.enabled
                          ? button("disable", "Disable", x)
                          : <Button size="compact-xs" variant="default" onClick={() => turn.mutate(x)} loading={turn.isPending && turn.variables.id === x.id} aria-label={`Enable: ${x.name}`}>Enable</Button>}
                        {button("delete", "Delete", x)}
                      </Group>
                    </td>
                  )}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {p.dialogs(act, setAct, close)}
      <Confirm opened={act?.what === "disable"} close={close} title={`Disable ${way?.name ?? ""}?`} action="Disable" danger run={async () => { if (way) await p.turn(way); await again(); }}>
        Nobody signs in by it until it is on again, and who came in by it is signed out now.
      </Confirm>
      <Danger opened={act?.what === "delete"} close={close} title={p.removing.title} name={way?.name ?? ""} action="Delete" topics={[p.topic, ...(p.topics ?? [])]} run={async () => way && p.remove(way)}>
        {p.removing.text} Who came in by it is signed out now.
      </Danger>
    </Panel>
  );
}
