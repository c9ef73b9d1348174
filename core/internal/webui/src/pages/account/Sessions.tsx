import { Badge, Button } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { ErrorBox } from "~/ui/ErrorBox";
import { Ago } from "~/ui/Time";
import { browserOf } from "./browser";
import { Part, Rows, What } from "./Part";

// Sessions shows what is signed in as oneself, and ends it.
export function Sessions() {
  const { me, refresh } = useSession();
  const queries = useQueryClient();
  const key = ["user", me.user.id, "sessions"];
  const { data, error } = useQuery({ queryKey: key, queryFn: () => ask(api.GET("/users/{id}/sessions", { params: { path: { id: "me" } } })) });
  const [all, setAll] = useState(false);
  const [ending, setEnding] = useState<Schemas["UserSessionView"]>();
  return (
    <Part title="Sessions" hint="Where you are signed in now." action={<Button variant="default" onClick={() => setAll(true)}>Sign out everywhere</Button>}>
      {error ? <ErrorBox error={error} /> : (
        <Rows
          label="Sessions" items={data?.items ?? []} none="None." rowKey={(s) => s.id}
          row={(s) => (
            <>
              <What more={<>From {s.source} by {(s.methods ?? []).join(" and ")}, signed in <Ago at={s.created_at} />, used <Ago at={s.seen_at} /></>}>
                {browserOf(s.agent)} {s.current && <Badge>This one</Badge>} {s.kind === "bearer" && <Badge color="gray">Command line</Badge>}
              </What>
              {!s.current && <Button size="compact-sm" variant="default" onClick={() => setEnding(s)} aria-label={`Sign out ${browserOf(s.agent)} from ${s.source}`}>Sign out</Button>}
            </>
          )}
        />
      )}
      <Confirm
        opened={!!ending} close={() => setEnding(undefined)} title="Sign this out" action="Sign out" danger
        run={async () => {
          await ask(api.DELETE("/users/{id}/sessions/{part}", { params: { path: { id: "me", part: ending?.id ?? "" } } }));
          await queries.invalidateQueries({ queryKey: key });
        }}
      >
        {browserOf(ending?.agent)}, from {ending?.source}. What it opened ends.
      </Confirm>
      <Confirm
        opened={all} close={() => setAll(false)} title="Sign out everywhere" action="Sign out everywhere" danger
        run={async () => {
          await ask(api.DELETE("/users/{id}/sessions", { params: { path: { id: "me" } } }));
          await refresh();
        }}
      >
        Every session ends, this one too, and so do connections opened by them. API tokens stay.
      </Confirm>
    </Part>
  );
}
