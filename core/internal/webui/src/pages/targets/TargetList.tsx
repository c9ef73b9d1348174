import { ActionIcon, Badge, Group, Text, Tooltip } from "@mantine/core";
import { IconAlertTriangle, IconMessageQuestion, IconNetwork, IconPlug, IconShieldLock, IconStar, IconStarFilled, IconTargetOff, IconTerminal2, IconVideo, IconWorld } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useMemo, useState } from "react";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { Explain } from "~/ui/Explain";
import { useList } from "~/ui/useList";
import { ConnectButtons } from "./ConnectButtons";
import { byTarget, type Entry, type Row } from "./connect";
import { useFavourites } from "./favourites";
import classes from "./targets.module.css";

export type View = "all" | "favourites" | "recent";

const icons = { ssh: IconTerminal2, tcp: IconPlug, network: IconNetwork, web: IconWorld } as const;

export function KindIcon({ kind }: { kind: string }) {
  const I = icons[kind as keyof typeof icons] ?? IconPlug;
  return <I size={19} stroke={1.6} aria-label={kind} role="img" className={classes.kind} />;
}

interface Props {
  view: View;
  text: string;
  kind?: string;
  site?: string;
  connect: (e: Entry) => void;
}

export function TargetList({ view, text, kind, site, connect }: Props) {
  const favourites = useFavourites();
  const recent = useRecent(view === "recent");
  const [asked, setAsked] = useState<Row>();
  const only = view === "favourites" ? favourites.ids : view === "recent" ? recent.ids : undefined;
  const pages = useList(["target", "mine", view, text, kind, site, only], async (cursor, signal) => {
    if (only?.length === 0) return { items: [] as Entry[] };
    return ask(api.GET("/me/targets", { params: { query: { search: text || undefined, kind, site, only, cursor, limit: 200 } }, signal }));
  });
  const rows = useMemo(() => {
    const all = byTarget(pages.rows);
    if (view !== "recent") return all;
    const at = new Map(recent.ids.map((id, i) => [id, i]));
    return all.sort((a, b) => (at.get(a.target.id) ?? 0) - (at.get(b.target.id) ?? 0));
  }, [pages.rows, view, recent.ids]);

  const star = (r: Row) => {
    const on = favourites.has(r.target.id);
    return (
      <ActionIcon variant="subtle" color={on ? "yellow" : "gray"} aria-pressed={on} aria-label={`${r.target.name} is a favourite`} onClick={() => favourites.toggle(r.target.id)}>
        {on ? <IconStarFilled size={17} className={classes.starred} /> : <IconStar size={17} stroke={1.6} />}
      </ActionIcon>
    );
  };
  const name = (r: Row) => (
    <div className={classes.name}>
      <KindIcon kind={r.target.kind} />
      <div className={classes.words}>
        <div className={classes.first}>{r.target.name}</div>
        {r.target.problem ? (
          <button type="button" className={classes.problem} onClick={() => setAsked(r)}>
            <IconAlertTriangle size={14} aria-hidden /> <span>{upper(r.target.problem)}</span>
          </button>
        ) : (
          r.target.comment && <div className={classes.second}>{r.target.comment}</div>
        )}
      </div>
    </div>
  );
  const buttons = (r: Row) => <ConnectButtons row={r} connect={connect} explain={() => setAsked(r)} />;
  const columns: Column<Row>[] = [
    { key: "star", header: "Favourite", quiet: true, width: "30px", render: star },
    { key: "name", header: "Target", width: "minmax(220px, 1.7fr)", render: name },
    { key: "where", header: "Where", width: "minmax(130px, 0.8fr)", from: 700, render: (r) => <Where row={r} /> },
    { key: "terms", header: "Terms", width: "84px", from: 700, render: (r) => <Terms row={r} /> },
    { key: "connect", header: "Connect", width: "minmax(220px, 250px)", render: buttons },
  ];
  return (
    <>
      <DataTable
        label="Targets" columns={columns} list={{ ...pages, rows, loading: pages.loading || (view === "recent" && recent.loading) }} rowKey={(r) => r.target.id} rowHeight={58}
        open={(r) => r.entries[0] && connect(r.entries[0])}
        compact={(r) => (
          <div className={classes.compact}>
            <Group gap={6} wrap="nowrap" justify="space-between">{name(r)}{star(r)}</Group>
            <Text size="xs" c="dimmed" className={classes.address}>{r.target.address}</Text>
            <Group gap={8} justify="space-between">{buttons(r)}<Terms row={r} /></Group>
          </div>
        )}
        empty={<Nothing view={view} filtered={Boolean(text || kind || site)} />}
      />
      {asked && <Explain target={asked.target.id} name={asked.target.name} account={asked.entries[0]?.account} close={() => setAsked(undefined)} />}
    </>
  );
}

function Where({ row: { target: t } }: { row: Row }) {
  return (
    <div>
      <div>{t.site ? <Badge color="gray" size="sm" tt="none">{t.site}</Badge> : <Text span size="sm" c="dimmed">direct</Text>}</div>
      <div className={classes.second}>{t.kind === "network" ? "" : `${t.host}:${t.port}`}</div>
    </div>
  );
}

// Terms are what holds for a use: seen before the click, not after.
function Terms({ row }: { row: Row }) {
  const any = (f: (e: Entry) => boolean) => row.entries.some(f);
  const marks = [
    any((e) => e.record) && { icon: IconVideo, text: "Sessions are recorded" },
    any((e) => e.need_reason) && { icon: IconMessageQuestion, text: "You will be asked for a reason" },
    any((e) => e.need_mfa) && { icon: IconShieldLock, text: "Needs a sign-in with a second factor" },
  ].filter((m) => m !== false);
  return (
    <span className={classes.terms}>
      {marks.map((m) => (
        <Tooltip key={m.text} label={m.text}>
          <m.icon size={18} stroke={1.6} role="img" aria-label={m.text} />
        </Tooltip>
      ))}
    </span>
  );
}

function Nothing({ view, filtered }: { view: View; filtered: boolean }) {
  if (filtered) return <Empty icon={IconTargetOff} title="Nothing matches">Try a part of the name or address, or clear the filters.</Empty>;
  if (view === "favourites") return <Empty icon={IconStar} title="No favourites yet">Mark a target with its star to have it here.</Empty>;
  if (view === "recent") return <Empty title="Nothing used yet">Targets you connect to appear here.</Empty>;
  return <Empty icon={IconTargetOff} title="You may not reach any target yet">An administrator gives you access through a role.</Empty>;
}

// useRecent finds the targets the user was connected to lately.
function useRecent(wanted: boolean): { ids: string[]; loading: boolean } {
  const { me } = useSession();
  const q = useQuery({
    queryKey: ["connection", "recent", me.user.id],
    queryFn: ({ signal }) => ask(api.GET("/connections", { params: { query: { user: me.user.id, limit: 200 } }, signal })),
    enabled: wanted,
  });
  const ids = useMemo(() => [...new Set((q.data?.items ?? []).map((c) => c.target_id).filter(Boolean))].slice(0, 50), [q.data]);
  return { ids, loading: q.isPending };
}

const upper = (s: string) => s.charAt(0).toUpperCase() + s.slice(1);
