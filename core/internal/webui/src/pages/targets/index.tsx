import { CloseButton, Group, SegmentedControl, Select, TextInput } from "@mantine/core";
import { useDebouncedValue, useHotkeys } from "@mantine/hooks";
import { IconSearch } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { useRef, useState } from "react";
import { api, ask } from "~/api/client";
import { Page } from "~/ui/Page";
import { Connecting, useConnect } from "./Connecting";
import { OpenPorts } from "./OpenPorts";
import { TargetList, type View } from "./TargetList";

// My targets: everything one may reach, found by typing.
export default function Targets() {
  const search = useSearch({ strict: false }) as { q?: string; view?: View; kind?: string; site?: string };
  const navigate = useNavigate();
  const set = (change: Partial<typeof search>) => void navigate({ to: "/targets", search: clean({ ...search, ...change }), replace: true });
  const [text, setText] = useState(search.q ?? "");
  const [settled] = useDebouncedValue(text.trim(), 150);
  const box = useRef<HTMLInputElement>(null);
  useHotkeys([["/", () => box.current?.focus()]]);
  const sites = useQuery({ queryKey: ["site", "mine"], queryFn: ({ signal }) => mySites(signal) });
  const connect = useConnect();
  const view = search.view ?? "all";
  return (
    <Page title="My targets" fill>
      <Group gap="sm" align="center">
        <TextInput
          ref={box} value={text} onChange={(e) => setText(e.currentTarget.value)} placeholder="Name or address" aria-label="Search targets" autoFocus
          leftSection={<IconSearch size={17} aria-hidden />} rightSection={text && <CloseButton size="sm" aria-label="Clear the search" onClick={() => setText("")} />}
          style={{ flex: "1 1 260px", maxWidth: 460 }} type="search" spellCheck={false}
        />
        <SegmentedControl
          aria-label="Which targets" value={view} onChange={(v) => set({ view: v as View })}
          data={[{ value: "all", label: "All" }, { value: "favourites", label: "Favourites" }, { value: "recent", label: "Recent" }]}
        />
        <Select
          aria-label="Kind" placeholder="Any kind" value={search.kind ?? null} onChange={(kind) => set({ kind: kind ?? undefined })} clearable w={140}
          data={[{ value: "ssh", label: "SSH" }, { value: "tcp", label: "TCP port" }, { value: "network", label: "Network" }, { value: "web", label: "Web" }]}
        />
        {(sites.data?.length ?? 0) > 1 && (
          <Select aria-label="Site" placeholder="Any site" value={search.site ?? null} onChange={(site) => set({ site: site ?? undefined })} clearable searchable w={170} data={sites.data} />
        )}
      </Group>
      <OpenPorts />
      <TargetList view={view} text={settled} kind={search.kind} site={search.site} connect={connect.start} />
      <Connecting state={connect} />
    </Page>
  );
}

function clean<T extends Record<string, unknown>>(search: T): T {
  return Object.fromEntries(Object.entries(search).filter(([, v]) => v !== undefined && v !== "" && v !== "all")) as T;
}

// mySites are the sites of what one may reach, from the first targets of the
// list: people with more use the search.
async function mySites(signal: AbortSignal): Promise<string[]> {
  const page = await ask(api.GET("/me/targets", { params: { query: { limit: 500 } }, signal }));
  return [...new Set((page.items ?? []).map((e) => e.target.site).filter(Boolean))].sort();
}
