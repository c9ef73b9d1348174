import { Button, Code, Group, Stack, Text } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { type ReactNode, useState } from "react";
import { api, ask } from "~/api/client";
import { Confirm } from "~/ui/Confirm";
import { ErrorBox } from "~/ui/ErrorBox";
import { type Approval, bodyOf, key, methodOf } from "./words";

// Decide offers what may be done about a waiting request: approve or deny that
// of somebody else, take back one's own.
export function Decide({ a }: { a: Approval }) {
  const [open, setOpen] = useState<"approve" | "deny" | "withdraw">();
  const client = useQueryClient();
  const close = () => setOpen(undefined);
  if (a.state !== "waiting" || !(a.may_decide || a.own)) return null;
  const path = { params: { path: { id: a.id } } };
  const run = async (reason: string) => {
    const body = { reason: reason || undefined };
    if (open === "approve") await ask(api.POST("/web-approvals/{id}/approve", { ...path, body }));
    else if (open === "deny") await ask(api.POST("/web-approvals/{id}/deny", { ...path, body }));
    else await ask(api.POST("/web-approvals/{id}/withdraw", path));
    await client.invalidateQueries({ queryKey: key() });
  };
  const what = `${methodOf(a)} ${a.url}`;
  return (
    <Group gap={6} wrap="nowrap" justify="flex-end" onClick={(e) => e.stopPropagation()} onKeyDown={(e) => e.stopPropagation()}>
      {a.may_decide && <Button size="compact-sm" onClick={() => setOpen("approve")} aria-label={`Approve ${what}`}>Approve</Button>}
      {a.may_decide && <Button size="compact-sm" variant="default" onClick={() => setOpen("deny")} aria-label={`Deny ${what}`}>Deny</Button>}
      {a.own && <Button size="compact-sm" variant="default" onClick={() => setOpen("withdraw")} aria-label={`Take back ${what}`}>Take back</Button>}
      <Confirm opened={open === "approve"} close={close} title={`Approve ${a.user_name}'s request?`} action="Approve" reason="wanted" reasonLabel="Reason, shown to the user" run={run}>
        <Request a={a}>It is sent to {a.target_name} once.</Request>
      </Confirm>
      <Confirm opened={open === "deny"} close={close} title={`Deny ${a.user_name}'s request?`} action="Deny" danger reason="wanted" reasonLabel="Reason, shown to the user" run={run}>
        <Request a={a}>It is not sent, and the user is told so.</Request>
      </Confirm>
      <Confirm opened={open === "withdraw"} close={close} title="Take this request back?" action="Take back" run={run}>
        <Request a={a}>It is not sent.</Request>
      </Confirm>
    </Group>
  );
}

// Request is the whole of it: who decides must not have to guess the rest. What
// is in the body is asked for when it is needed.
function Request({ a, children }: { a: Approval; children: ReactNode }) {
  const one = useQuery({
    queryKey: key("one", a.id), enabled: a.may_decide && a.length_bytes !== 0,
    queryFn: ({ signal }) => ask(api.GET("/web-approvals/{id}", { params: { path: { id: a.id } }, signal })),
  });
  const preview = one.data?.preview;
  return (
    <Stack gap="xs">
      <Block label="Request" text={`${a.method} ${a.url}`} />
      {a.rule_method && a.rule_method !== a.method && <div><b>Counts as {a.rule_method}:</b> the application may take the method from a header, the query or the body.</div>}
      <div>{bodyOf(a)} {children}</div>
      {preview && <Block label="Body" text={preview.text} />}
      {preview && <Text size="sm" c="dimmed">{preview.kind === "multipart" ? "Names and sizes only." : "Secrets are not shown."}</Text>}
      {one.error != null && <ErrorBox error={one.error} />}
      {a.why && <div><b>Why it waits:</b> {a.why}</div>}
    </Stack>
  );
}

function Block({ label, text }: { label: string; text: string }) {
  return <Code block tabIndex={0} aria-label={label} mah={168} style={{ whiteSpace: "pre-wrap", overflowWrap: "anywhere", overflowY: "auto" }}>{text}</Code>;
}
