import { Alert, Button, Checkbox, FileButton, Group, Modal, Select, Stack, Text, Textarea } from "@mantine/core";
import { IconCircleCheck, IconUpload } from "@tabler/icons-react";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask, asError } from "~/api/client";
import { ErrorBox } from "~/ui/ErrorBox";
import classes from "../parts/Table.module.css";
import { asTable, byLine } from "./lines";

const example = "name,kind,site,host,port,tags,accounts,comment\ndb-1,ssh,vpc-a,10.10.0.5,22,prod env=prod,root;deploy,Orders";

// Import takes a table, or plain lines of hosts, shows what would happen and
// what is wrong with which line, and then does all of it or nothing.
export function Import({ opened, close }: { opened: boolean; close: () => void }) {
  return (
    <Modal opened={opened} onClose={close} title="Import targets" size="xl" closeOnClickOutside={false}>
      {opened && <Body close={close} />}
    </Modal>
  );
}

function Body({ close }: { close: () => void }) {
  const client = useQueryClient();
  const [text, setText] = useState("");
  const [existing, setExisting] = useState<"refuse" | "skip" | "update">("refuse");
  const [sites, setSites] = useState(false);
  const send = (dry_run: boolean) =>
    ask(api.POST("/targets/import", { params: { query: { existing, create_sites: sites, dry_run } }, body: asTable(text), bodySerializer: (b) => b, headers: { "Content-Type": "text/csv" } }));
  const check = useMutation({ mutationFn: () => send(true) });
  const run = useMutation({ mutationFn: () => send(false), onSuccess: () => void client.invalidateQueries({ predicate: (q) => ["target", "site"].includes(String(q.queryKey[0])) }) });
  const reset = () => {
    check.reset();
    run.reset();
  };
  const error = run.error ?? check.error;
  const problems = error ? asError(error).errors : [];
  const plan = check.data;
  if (run.data) return (
    <Stack gap="md">
      <Alert variant="light" color="sea" icon={<IconCircleCheck size={22} />} title="Imported">
        {run.data.created.toLocaleString()} made, {run.data.updated.toLocaleString()} changed, {run.data.skipped.toLocaleString()} skipped{run.data.sites > 0 ? `, ${run.data.sites} sites made` : ""}. They carry the mark <span className="mono">import {run.data.id}</span>.
      </Alert>
      <Group justify="flex-end"><Button onClick={close}>Done</Button></Group>
    </Stack>
  );
  return (
    <Stack gap="md">
      <Text size="sm" c="dimmed">A table with a header line (columns {`name, host`} needed; {`kind, site, port, tags, accounts, comment`} may be there), or just one host on each line, as <span className="mono">site/host:port</span>. All of it is imported, or nothing.</Text>
      <Textarea aria-label="Targets" placeholder={example} autosize minRows={8} maxRows={16} value={text} onChange={(e) => { setText(e.currentTarget.value); reset(); }} spellCheck={false} classNames={{ input: "mono" }} data-autofocus />
      <Group align="flex-end">
        <FileButton accept=".csv,.txt,text/csv,text/plain" onChange={(f) => void f?.text().then((t) => { setText(t); reset(); })}>{(props) => <Button variant="default" leftSection={<IconUpload size={16} />} {...props}>Choose a file</Button>}</FileButton>
        <Select label="Names that are taken" data={[{ value: "refuse", label: "are an error" }, { value: "skip", label: "are skipped" }, { value: "update", label: "are changed" }]} value={existing} onChange={(v) => { setExisting((v ?? "refuse") as typeof existing); reset(); }} allowDeselect={false} />
        <Checkbox label="Make sites that do not exist" checked={sites} onChange={(e) => { setSites(e.currentTarget.checked); reset(); }} mb={8} />
      </Group>
      {error && problems.length === 0 && <ErrorBox error={error} />}
      {problems.length > 0 && (
        <Alert variant="light" color="red" title={`${problems.length} ${problems.length === 1 ? "problem" : "problems"}: nothing was imported`} role="alert">
          <div className={classes.scroll} style={{ maxHeight: 220 }}>
            <table className={classes.plain}><tbody>{byLine(problems).map((p) => <tr key={p.line + p.text}><td data-end style={{ textAlign: "left" }}>{p.line}</td><td>{p.text}</td></tr>)}</tbody></table>
          </div>
        </Alert>
      )}
      {plan && !error && (
        <Alert variant="light" color="sea" icon={<IconCircleCheck size={20} />} title="This would happen">
          {plan.created.toLocaleString()} targets made, {plan.updated.toLocaleString()} changed, {plan.skipped.toLocaleString()} skipped{plan.sites > 0 ? `, ${plan.sites} sites made` : ""}.
        </Alert>
      )}
      <Group justify="flex-end" gap="xs">
        <Button variant="default" onClick={close}>Cancel</Button>
        <Button variant={plan ? "default" : undefined} loading={check.isPending} disabled={text.trim() === ""} onClick={() => { reset(); check.mutate(); }}>Check</Button>
        {plan && !error && <Button loading={run.isPending} onClick={() => run.mutate()}>Import</Button>}
      </Group>
    </Stack>
  );
}
