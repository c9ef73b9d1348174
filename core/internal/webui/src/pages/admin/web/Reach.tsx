import { Checkbox, Select, Stack, TagsInput, Text, TextInput } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { Panel } from "../parts/Panel";
import { listOf } from "./draft";
import type { Part } from "./Editor";
import { Proposals } from "./Proposals";
import type { Rule } from "./recipe";
import { Rows } from "./Rows";
import { hasRule } from "./rules";
import classes from "./web.module.css";

type Approval = Schemas["WebruleApproval"];

// Reach says what a session may ask for. Everything else is refused.
export function Reach({ d, set, at, id }: Part & { id?: string }) {
  const p = d.policy;
  const change = (c: Partial<typeof p>) => set({ policy: { ...p, ...c } });
  const problem = [at("web.policy.allow"), at("web.policy.deny"), at("web.policy.approve")].filter(Boolean).join(" ");
  const allow = p.allow ?? [];
  return (
    <Panel title="What it may reach" hint="The application's own address, and what you allow here. Everything else is refused.">
      <Stack gap="md">
        <div>
          <Text fw={500} size="sm" mb={4}>Also allowed</Text>
          <RuleRows rows={allow} onChange={(rows) => change({ allow: rows })} label="rule" empty="Nothing besides the application itself." />
        </div>
        <Checkbox label="Only what is listed, of the application itself too" description="Without this all of its paths and methods are open." checked={p.own ?? false} onChange={(e) => change({ own: e.currentTarget.checked })} />
        <div>
          <Text fw={500} size="sm" mb={4}>Refused in any case</Text>
          <RuleRows rows={p.deny ?? []} onChange={(rows) => change({ deny: rows })} label="refusal" empty="Nothing." any />
        </div>
        <div>
          <Text fw={500} size="sm">Needs a second person</Text>
          <Text size="sm" c="dimmed" mb={4}>What is allowed and matches waits until somebody else with the right to approve lets it through, once.</Text>
          <RuleRows<Approval> rows={p.approve ?? []} onChange={(rows) => change({ approve: rows })} label="approval rule" empty="Nothing waits." any
            more={(r, set, i) => <TextInput aria-label={`Reason of approval rule ${i + 1}`} placeholder="reason, shown to both" value={r.why ?? ""} onChange={(e) => set({ why: e.currentTarget.value || undefined })} maxLength={500} className={classes.host} />} />
        </div>
        {problem && <Text size="sm" c="red" role="alert">{problem}</Text>}
        <TagsInput label="Internal addresses that are meant" description="Networks, addresses or names that would be refused as internal: loopback, link-local and the webproxy's own." placeholder="127.0.0.0/8" value={p.private ?? []} onChange={(list) => change({ private: list.flatMap(listOf) })} error={at("web.policy.private")} />
        <Checkbox label="Learn" description="What is refused is noted, so that it can be allowed with one click. It is refused all the same." checked={p.learn ?? false} onChange={(e) => change({ learn: e.currentTarget.checked })} />
        <Checkbox label="For programs, too" description="Users may open it for curl and other programs, without a browser (caponier web --proxy). These rules hold for them; limits on clipboard, uploads and downloads do not." checked={d.api} onChange={(e) => set({ api: e.currentTarget.checked })} />
        {id && (p.learn || undefined) && <Proposals id={id} has={(r) => hasRule(allow, r)} take={(rules) => change({ allow: [...allow, ...rules] })} />}
        <TextInput label="Scan files and bodies with" description="An ICAP service; the setting web.scan_url when empty." placeholder="icap://scanner:1344/avscan" value={d.scan} onChange={(e) => set({ scan: e.currentTarget.value.trim() })} error={at("web.scan_url")} spellCheck={false} maw={480} />
      </Stack>
    </Panel>
  );
}

interface RuleRowsProps<R> {
  rows: readonly R[];
  onChange: (rows: R[]) => void;
  label: string;
  empty: string;
  any?: boolean;
  more?: (row: R, set: (change: Partial<R>) => void, index: number) => ReactNode;
}

function RuleRows<R extends Rule>({ rows, onChange, label, empty, any, more }: RuleRowsProps<R>) {
  const sites = useQuery({ queryKey: ["site", "names"], queryFn: ({ signal }) => ask(api.GET("/sites", { params: { query: { limit: 500 } }, signal })) });
  return (
    <Rows<R>
      label={label} rows={rows} onChange={onChange} fresh={() => ({ host: "" }) as R} empty={empty}
      render={(r, change, i) => {
        const set = (c: Partial<Rule>) => change(c as Partial<R>);
        return (
        <>
          <TextInput aria-label={`Host of ${label} ${i + 1}`} placeholder={any ? "any host" : "*.example.org or host:8443"} value={r.host} onChange={(e) => set({ host: e.currentTarget.value.trim() })} required={!any} spellCheck={false} className={classes.host} />
          <TextInput aria-label={`Path of ${label} ${i + 1}`} placeholder="any path" value={r.path ?? ""} onChange={(e) => set({ path: e.currentTarget.value.trim() || undefined })} spellCheck={false} className={classes.host} />
          <TagsInput aria-label={`Methods of ${label} ${i + 1}`} placeholder={r.methods?.length ? "" : "any method"} data={["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]} value={r.methods ?? []} onChange={(methods) => set({ methods: methods.map((m) => m.toUpperCase()) })} className={classes.host} />
          <Select aria-label={`Scheme of ${label} ${i + 1}`} data={[{ value: "", label: "any" }, { value: "https", label: "https" }, { value: "http", label: "http" }]} value={r.scheme ?? ""} onChange={(s) => set({ scheme: s || undefined })} allowDeselect={false} w={100} />
          {!any && <Select aria-label={`Way of ${label} ${i + 1}`} data={[{ value: "", label: "as the target" }, { value: "-", label: "directly" }, ...(sites.data?.items ?? []).map((s) => ({ value: s.name, label: `site ${s.name}` }))]} value={r.site ?? ""} onChange={(s) => set({ site: s || undefined })} allowDeselect={false} w={140} />}
          {more?.(r, change, i)}
        </>
        );
      }}
    />
  );
}
