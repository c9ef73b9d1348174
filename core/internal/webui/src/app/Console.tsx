import "@mantine/core/styles.layer.css";
import "@mantine/notifications/styles.layer.css";
import "@mantine/spotlight/styles.layer.css";
import { ModalsProvider } from "@mantine/modals";
import { Notifications } from "@mantine/notifications";
import { MutationCache, QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import { useState } from "react";
import { asError } from "~/api/client";
import { tellConflict } from "~/ui/conflict";
import { LiveContext, useEventFeed } from "./events";
import { makeRouter } from "./router";
import { useSession } from "./session";

function makeQueries(): QueryClient {
  const client: QueryClient = new QueryClient({
    defaultOptions: {
      queries: {
        // Events say when something is stale; nothing is polled.
        staleTime: Number.POSITIVE_INFINITY,
        gcTime: 5 * 60_000,
        refetchOnWindowFocus: false,
        retry: (n, e) => n < 2 && [0, 502, 503, 504].includes(asError(e).status),
      },
      mutations: { retry: false },
    },
    mutationCache: new MutationCache({
      onError: (e) => {
        if (asError(e).status === 412) tellConflict(() => void client.invalidateQueries());
      },
    }),
  });
  return client;
}

// Console is the signed-in part.
export default function Console() {
  const [queries] = useState(makeQueries);
  return (
    <QueryClientProvider client={queries}>
      <ModalsProvider>
        <Notifications position="bottom-right" limit={4} autoClose={5000} />
        <Fed />
      </ModalsProvider>
    </QueryClientProvider>
  );
}

function Fed() {
  const live = useEventFeed();
  const session = useSession();
  const [router] = useState(() => makeRouter(session));
  return (
    <LiveContext value={live}>
      <RouterProvider router={router} />
    </LiveContext>
  );
}
