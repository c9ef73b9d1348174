import { useQuery } from "@tanstack/react-query";
import { useSearch } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";

export type AccessGroup = Schemas["GroupView"];

// useGroups reads the access groups in which the user may do anything. Where
// there is only the default one, nothing of the console speaks of groups.
export function useGroups(): { all: AccessGroup[]; several: boolean; nameOf: (id: string | undefined) => string } {
  const q = useQuery({ queryKey: ["group", "all"], queryFn: ({ signal }) => ask(api.GET("/access-groups", { params: { query: { limit: 500 } }, signal })) });
  const all = q.data?.items ?? [];
  return { all, several: all.length > 1 || (all.length === 1 && !all[0]?.builtin), nameOf: (id) => all.find((g) => g.id === id)?.name ?? id ?? "" };
}

// usePlaces are the groups something new may be put into, and the one to offer.
export function usePlaces(permission: string): { places: AccessGroup[]; first: string } {
  const { within } = useSession();
  const { all } = useGroups();
  const places = all.filter((g) => within(permission, g.id));
  return { places, first: (places.find((g) => g.builtin) ?? places[0])?.id ?? "" };
}

// useGroupFilter is the group a list is limited to; links say it as ?group=.
export function useGroupFilter(): [string, (id: string) => void] {
  const said = useSearch({ strict: false }) as { group?: unknown };
  return useState(typeof said.group === "string" ? said.group : "");
}
