import { Button, Group, Modal, Stack, Text } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import { CopyText } from "~/ui/CopyText";
import { Time } from "~/ui/Time";
import { Facts } from "../parts/Panel";
import classes from "./Audit.module.css";
import type { Filter } from "./filter";
import { type Entry, OutcomeBadge } from "./Line";
import { sentence } from "./words";

const pages: Record<string, string> = { usr: "/admin/users/", rol: "/admin/roles/", tgt: "/admin/targets/", edg: "/fleet/", con: "/connections/", rec: "/recordings/" };

function Thing({ id, name, close }: { id?: string; name?: string; close: () => void }) {
  const to = id && pages[id.split("_")[0] ?? ""];
  const text = name || id || "–";
  return <>{to ? <Link to={to + id} onClick={close}>{text}</Link> : text}{name && id && name !== id && <Text size="xs" c="dimmed" className="mono">{id}</Text>}</>;
}

export function EventModal({ e, close, filter }: { e?: Entry; close: () => void; filter: (f: Partial<Filter>) => void }) {
  const only = (f: Partial<Filter>) => {
    filter(f);
    close();
  };
  return (
    <Modal opened={e !== undefined} onClose={close} title={e ? sentence(e) : ""} size="lg">
      {e && (
        <Stack gap="md">
          {e.erased && <Text size="sm" c="dimmed">Names in this event were erased on a person's request; the chain still verifies.</Text>}
          <Facts rows={[
            ["Time", <Time key="t" at={e.time} />], ["Type", <span key="y"><span className="mono">{e.type}</span> ({e.number})</span>], ["Outcome", e.outcome === "ok" ? "Good" : <OutcomeBadge key="o" outcome={e.outcome} />], ["Number", <span key="n" className="nums">{e.seq}</span>],
            ["Who", <Thing key="w" id={e.actor.id} name={e.actor.name} close={close} />], ["As", [e.actor.kind, e.actor.via && `via ${e.actor.via}`].filter(Boolean).join(" ")], ["From", e.actor.source ? <span key="f" className="mono">{e.actor.source}</span> : "–"],
            ["What", <Thing key="x" id={e.object.id} name={e.object.name || e.object.kind} close={close} />], e.connection ? ["Connection", <Thing key="c" id={e.connection} close={close} />] : false,
            ...Object.entries(e.fields ?? {}).sort().map(([k, v]) => [k.replaceAll("_", " "), <span key={k} style={{ overflowWrap: "anywhere" }}>{v || "–"}</span>] as const),
          ]} />
          <div className={classes.hash}><Text size="xs" c="dimmed">Hash</Text><CopyText text={e.hash} /></div>
          <Group gap="xs">
            {e.actor.id && <Button size="compact-xs" variant="default" onClick={() => only({ about: e.actor.id ?? "", type: "" })}>All of this actor</Button>}
            {e.object.id && e.object.id !== e.actor.id && <Button size="compact-xs" variant="default" onClick={() => only({ about: e.object.id ?? "", type: "" })}>All about this</Button>}
            <Button size="compact-xs" variant="default" onClick={() => only({ type: e.type, about: "" })}>All of this type</Button>
          </Group>
        </Stack>
      )}
    </Modal>
  );
}
