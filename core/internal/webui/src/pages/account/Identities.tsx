import { ActionIcon, Button, Tooltip } from "@mantine/core";
import { IconUnlink } from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { ErrorBox } from "~/ui/ErrorBox";
import { Ago } from "~/ui/Time";
import { Part, Rows, What } from "./Part";
import { Prove } from "./Prove";

// Identities links oneself to single sign-on; it shows only where there is any.
export function Identities() {
  const { me } = useSession();
  const queries = useQueryClient();
  const key = ["user", me.user.id, "identities"];
  const options = useQuery({ queryKey: ["login-options"], queryFn: () => ask(api.GET("/login/options")) });
  const { data, error } = useQuery({ queryKey: key, queryFn: () => ask(api.GET("/users/{id}/identities", { params: { path: { id: "me" } } })) });
  const [linking, setLinking] = useState<Schemas["SigninOptionView"]>();
  const [removing, setRemoving] = useState<Schemas["SigninIdentityView"]>();
  const have = data?.items ?? [];
  const more = (options.data?.sso ?? []).filter((w) => !have.some((i) => i.provider === w.name));
  if (have.length === 0 && more.length === 0) return null;
  return (
    <Part title="Single sign-on" hint="Accounts elsewhere that sign you in here." action={more.map((w) => <Button key={w.name} variant="default" onClick={() => setLinking(w)}>Link {w.label}</Button>)}>
      {error ? <ErrorBox error={error} /> : (
        <Rows
          label="Linked accounts" items={have} none="None linked." rowKey={(i) => i.id}
          row={(i) => (
            <>
              <What more={<>Linked <Ago at={i.created_at} />{i.last_used && <>, used <Ago at={i.last_used} /></>}</>}>{i.label}</What>
              <Tooltip label="Unlink"><ActionIcon variant="subtle" color="red" aria-label={`Unlink ${i.label}`} onClick={() => setRemoving(i)}><IconUnlink size={17} /></ActionIcon></Tooltip>
            </>
          )}
        />
      )}
      <Prove
        opened={!!linking} close={() => setLinking(undefined)} title={`Link ${linking?.label ?? ""}`} action="Continue"
        run={async (proof) => {
          const { url } = await ask(api.POST("/users/{id}/identities/begin", { params: { path: { id: "me" } }, body: { provider: linking?.name ?? "", ...proof } }));
          location.assign(url);
        }}
      >
        You sign in there next, and come back here.
      </Prove>
      <Confirm
        opened={!!removing} close={() => setRemoving(undefined)} title={`Unlink ${removing?.label ?? ""}`} action="Unlink" danger
        run={async () => {
          await ask(api.DELETE("/users/{id}/identities/{part}", { params: { path: { id: "me", part: removing?.id ?? "" } } }));
          await queries.invalidateQueries({ queryKey: key });
        }}
      >
        It does not sign you in any more. Make sure that you have another way.
      </Confirm>
    </Part>
  );
}
