import { keepPreviousData, type QueryKey, useInfiniteQuery } from "@tanstack/react-query";
import { useMemo } from "react";

interface PageOf<T> {
  items: T[] | null;
  next?: string;
}

export interface List<T> {
  rows: T[];
  loading: boolean; // nothing to show yet
  fetching: boolean;
  error: unknown;
  more: boolean;
  loadMore: () => void;
  again: () => void;
}

// useList reads a list page by page, as far as somebody scrolls. The key
// begins with the topic whose events make it stale:
//   useList(["connection", filter], (cursor, signal) => ask(api.GET("/connections", { params: { query: { ...filter, cursor, limit: 200 } }, signal })))
export function useList<T>(key: QueryKey, read: (cursor: string | undefined, signal: AbortSignal) => Promise<PageOf<T>>): List<T> {
  const q = useInfiniteQuery({
    queryKey: key,
    queryFn: ({ pageParam, signal }) => read(pageParam, signal),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last) => last.next || undefined,
    placeholderData: keepPreviousData,
  });
  const rows = useMemo(() => q.data?.pages.flatMap((p) => p.items ?? []) ?? [], [q.data]);
  return {
    rows,
    loading: q.isPending,
    fetching: q.isFetching,
    error: q.error,
    more: q.hasNextPage,
    loadMore: () => {
      if (q.hasNextPage && !q.isFetchingNextPage) void q.fetchNextPage();
    },
    again: () => void q.refetch(),
  };
}
