import { Button, Group } from "@mantine/core";
import { useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask } from "~/api/client";
import { Confirm } from "~/ui/Confirm";
import { type Approval, key } from "./words";

// Decide offers what may be done about a waiting request: approve or deny that
// of somebody else, take back one's own.
export function Decide({ a }: { a: Approval }) {
  const [open, setOpen] = useState<"approve" | "deny" | "withdraw">();
  const client = useQueryClient();
  if (a.state !== "waiting" || !(a.may_decide || a.own)) return null;
  const path = { params: { path: { id: a.id } } };
  const run = async (reason: string) => {
    const body = { reason: reason || undefined };
    if (open === "approve") await ask(api.POST("/web-approvals/{id}/approve", { ...path, body }));
    else if (open === "deny") await ask(api.POST("/web-approvals/{id}/deny", { ...path, body }));
    else await ask(api.POST("/web-approvals/{id}/withdraw", path));
    await client.invalidateQueries({ queryKey: key() });
  };
  const what = `${a.method} ${a.url}`;
  return (
    <Group gap={6} wrap="nowrap" justify="flex-end" onClick={(e) => e.stopPropagation()} onKeyDown={(e) => e.stopPropagation()}>
      {a.may_decide && <Button size="compact-sm" onClick={() => setOpen("approve")} aria-label={`Approve ${what}`}>Approve</Button>}
      {a.may_decide && <Button size="compact-sm" variant="default" onClick={() => setOpen("deny")} aria-label={`Deny ${what}`}>Deny</Button>}
      {a.own && <Button size="compact-sm" variant="default" onClick={() => setOpen("withdraw")} aria-label={`Take back ${what}`}>Take back</Button>}
      <Confirm opened={open === "approve"} close={() => setOpen(undefined)} title={`Approve ${a.user_name}'s request?`} action="Approve" reason="wanted" reasonLabel="Reason, shown to the user" run={run}>
        {what} is sent to {a.target_name} once.
      </Confirm>
      <Confirm opened={open === "deny"} close={() => setOpen(undefined)} title={`Deny ${a.user_name}'s request?`} action="Deny" danger reason="wanted" reasonLabel="Reason, shown to the user" run={run}>
        {what} is not sent, and the user is told so.
      </Confirm>
      <Confirm opened={open === "withdraw"} close={() => setOpen(undefined)} title="Take this request back?" action="Take back" run={run}>
        {what} is not sent.
      </Confirm>
    </Group>
  );
}
