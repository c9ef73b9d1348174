import { Anchor, Group, SegmentedControl, Stack, Text } from "@mantine/core";
import { IconUserCheck } from "@tabler/icons-react";
import { Link, useNavigate, useSearch } from "@tanstack/react-router";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { type Column, DataTable } from "~/ui/DataTable";
import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";
import { StateBadge } from "~/ui/StateBadge";
import { Ago } from "~/ui/Time";
import { useList } from "~/ui/useList";
import { Two } from "../connections";
import { viewPath } from "../web/path";
import { Decide } from "./Decide";
import { type Approval, key, methodOf, outcome, stateOf } from "./words";

interface Search {
  when?: "past" | "all";
}

// Approvals: requests of web sessions that wait for a second person, and what
// became of earlier ones.
export default function Approvals() {
  const { when } = useSearch({ strict: false }) as Search;
  const navigate = useNavigate();
  const { can } = useSession();
  const state = when === "past" ? "decided" : when === "all" ? undefined : "waiting";
  const list = useList<Approval>(key("list", state ?? "all"), (cursor, signal) =>
    ask(api.GET("/web-approvals", { params: { query: { state, cursor, limit: 100 } }, signal })));
  const watch = can("connections:watch");
  const columns: Column<Approval>[] = [
    { key: "state", header: "State", width: "104px", render: (a) => <StateBadge {...stateOf(a)} /> },
    { key: "who", header: "Who", width: "minmax(100px, 0.7fr)", render: (a) => <Two a={a.user_name} b={a.account ? `${a.account} on ${a.target_name}` : a.target_name} /> },
    { key: "what", header: "Request", width: "minmax(180px, 1.8fr)", render: (a) => <Two a={`${methodOf(a)} ${a.url}`} b={outcome(a) || a.why || a.rule} /> },
    { key: "since", header: "Asked", width: "100px", from: 700, render: (a) => <Ago at={a.asked_at} /> },
    { key: "session", header: "Session", width: "76px", from: 700, render: (a) => <Session a={a} watch={watch} /> },
    { key: "decide", header: "Decide", quiet: true, width: "170px", from: 700, align: "end", render: (a) => <Decide a={a} /> },
  ];
  return (
    <Page title="Approvals" hint="Requests of web sessions that need a second person. Each approval lets one request through, once." fill>
      <SegmentedControl
        aria-label="Which requests" value={when ?? "waiting"} w="fit-content" data={[{ value: "waiting", label: "Waiting" }, { value: "past", label: "Past" }, { value: "all", label: "All" }]}
        onChange={(v) => void navigate({ to: "/approvals", search: (v === "waiting" ? {} : { when: v }) as never, replace: true })}
      />
      <DataTable
        label="Requests" columns={columns} list={list} rowKey={(a) => a.id} rowHeight={56}
        compact={(a) => (
          <Stack gap={4}>
            <Text size="sm" fw={600} lineClamp={3} style={{ overflowWrap: "anywhere" }}>{methodOf(a)} {a.url}</Text>
            <Text size="sm" c="dimmed">{a.user_name} · {a.target_name} · <Ago at={a.asked_at} /></Text>
            <Text size="sm" c="dimmed">{outcome(a) || a.why || a.rule}</Text>
            <Group gap="xs" justify="space-between">
              <Group gap="sm"><StateBadge {...stateOf(a)} /><Session a={a} watch={watch} /></Group>
              <Decide a={a} />
            </Group>
          </Stack>
        )}
        empty={<Empty icon={IconUserCheck} title={when ? "No requests yet" : "Nothing waits"}>{when ? undefined : "Requests appear here by themselves, as soon as somebody's session asks."}</Empty>}
      />
    </Page>
  );
}

// Session leads to where the request comes from.
function Session({ a, watch }: { a: Approval; watch: boolean }) {
  if (a.state === "waiting" && watch && !a.own) return <Anchor href={viewPath(a.session_id, true)} target="_blank" size="sm">Watch</Anchor>;
  return <Anchor component={Link} to="/connections/$id" params={{ id: a.session_id } as never} size="sm">Details</Anchor>;
}
