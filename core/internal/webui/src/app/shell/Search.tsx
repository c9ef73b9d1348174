import { Spotlight, spotlight } from "@mantine/spotlight";
import { useDebouncedValue } from "@mantine/hooks";
import { IconSearch } from "@tabler/icons-react";
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask } from "~/api/client";
import { may, pages } from "../pages";
import { useSession } from "../session";
import { connectable, follow } from "~/pages/targets/connect";
import classes from "./Shell.module.css";

const mac = /Mac|iPhone|iPad/.test(navigator.userAgent);

export function SearchButton() {
  return (
    <button type="button" className={classes.search} onClick={spotlight.open} aria-keyshortcuts="Control+K">
      <IconSearch size={16} aria-hidden />
      <span>Search</span>
      <kbd aria-hidden data-keys={mac ? "⌘ K" : "Ctrl K"} />
    </button>
  );
}

// Search opens with Ctrl+K: targets first, then pages.
export function Search() {
  const session = useSession();
  const navigate = useNavigate();
  const [text, setText] = useState("");
  const [settled] = useDebouncedValue(text.trim(), 120);
  const found = useQuery({
    queryKey: ["target", "search", settled],
    queryFn: ({ signal }) => ask(api.GET("/me/targets", { params: { query: { search: settled, limit: 8 } }, signal })),
    enabled: settled.length > 0,
    placeholderData: keepPreviousData,
  });
  const words = text.trim().toLowerCase();
  const matching = pages.filter((p) => !p.hidden && may(p, session) && p.title.toLowerCase().includes(words));
  const targets = words ? (found.data?.items ?? []).slice(0, 12) : [];
  return (
    <Spotlight.Root query={text} onQueryChange={setText} shortcut="mod + K" scrollable maxHeight={420} clearQueryOnClose>
      <Spotlight.Search placeholder="Target or page" leftSection={<IconSearch size={18} aria-hidden />} aria-label="Search targets and pages" />
      <Spotlight.ActionsList>
        {targets.length > 0 && (
          <Spotlight.ActionsGroup label="Connect to">
            {targets.map((e) => (
              <Spotlight.Action
                key={`${e.target.id}/${e.account}`}
                label={e.account ? `${e.account} on ${e.target.name}` : e.target.name}
                description={`${e.target.kind} · ${e.target.site ? `${e.target.site}/` : ""}${e.target.address}`}
                onClick={() => (connectable(e) ? follow(e, (href) => void navigate({ href })) : void navigate({ href: `/targets?q=${encodeURIComponent(e.target.name)}` }))}
              />
            ))}
          </Spotlight.ActionsGroup>
        )}
        {matching.length > 0 && (
          <Spotlight.ActionsGroup label="Pages">
            {matching.map((p) => (
              <Spotlight.Action key={p.path} label={p.title} leftSection={<p.icon size={18} stroke={1.7} aria-hidden />} onClick={() => void navigate({ to: p.path })} />
            ))}
          </Spotlight.ActionsGroup>
        )}
        {targets.length === 0 && matching.length === 0 && <Spotlight.Empty>Nothing found</Spotlight.Empty>}
      </Spotlight.ActionsList>
    </Spotlight.Root>
  );
}
