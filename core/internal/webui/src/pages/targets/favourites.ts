import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useMemo } from "react";
import { api, ask } from "~/api/client";

const key = ["preference", "favourites"] as const;
const most = 200;

// useFavourites keeps target IDs for the user, in core.
export function useFavourites() {
  const client = useQueryClient();
  const { data } = useQuery({
    queryKey: key,
    queryFn: async ({ signal }) => {
      const values = (await ask(api.GET("/me/preferences", { signal }))).values as Record<string, unknown>;
      return Array.isArray(values.favourites) ? values.favourites.filter((x): x is string => typeof x === "string") : [];
    },
  });
  const save = useMutation({
    mutationFn: (ids: string[]) => ask(api.PUT("/me/preferences/{name}", { params: { path: { name: "favourites" } }, body: { value: ids } })),
    onMutate: (ids) => client.setQueryData(key, ids),
    onError: () => client.invalidateQueries({ queryKey: key }),
  });
  const ids = useMemo(() => data ?? [], [data]);
  const set = useMemo(() => new Set(ids), [ids]);
  return {
    ids,
    has: (id: string) => set.has(id),
    toggle: (id: string) => save.mutate(set.has(id) ? ids.filter((x) => x !== id) : [id, ...ids].slice(0, most)),
  };
}
