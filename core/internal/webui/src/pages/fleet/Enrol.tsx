import { Alert, Autocomplete, Button, Checkbox, Group, Modal, NumberInput, SegmentedControl, Select, Stack, Tabs, Text, TextInput } from "@mantine/core";
import { IconAlertTriangle, IconCircleCheck } from "@tabler/icons-react";
import { useMutation, useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, asError, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { CopyText } from "~/ui/CopyText";
import { ErrorBox } from "~/ui/ErrorBox";
import { Ago } from "~/ui/Time";
import { errorsAt } from "../admin/parts/errors";
import { kindWord } from "./edge";
import classes from "./Fleet.module.css";

type Made = Schemas["CreateEnrolmentTokenTokenMadeOutBody"];
type Kind = Schemas["CreateEnrolmentTokenTokenInBody"]["kind"];

// Enrol makes a token and says what to run on the new machine; it stays until
// the node is there.
export function Enrol({ opened, close }: { opened: boolean; close: () => void }) {
  return (
    <Modal opened={opened} onClose={close} title="Enrol a node" size="xl" closeOnClickOutside={false}>
      {opened && <Steps close={close} />}
    </Modal>
  );
}

function Steps({ close }: { close: () => void }) {
  const [made, setMade] = useState<Made>();
  return made ? <Run made={made} close={close} /> : <Ask done={setMade} close={close} />;
}

const lives = [["3600", "1 hour"], ["86400", "1 day"], ["604800", "7 days"], ["2592000", "30 days"]] as const;

function Ask({ done, close }: { done: (made: Made) => void; close: () => void }) {
  const { can } = useSession();
  const [kind, setKind] = useState<Kind>("extender");
  const [site, setSite] = useState("");
  const [uses, setUses] = useState<number | string>(1);
  const [ttl, setTTL] = useState("86400");
  const [comment, setComment] = useState("");
  const [repeat, setRepeat] = useState(false);
  const [downloads, setDownloads] = useState("");
  const sites = useQuery({ queryKey: ["site", "names"], queryFn: ({ signal }) => ask(api.GET("/sites", { params: { query: { limit: 500 } }, signal })), enabled: can("targets:view") });
  const names = (sites.data?.items ?? []).map((s) => s.name);
  const web = kind === "carrier" || kind === "webproxy";
  const unknown = !web && site !== "" && sites.data !== undefined && !names.includes(site.trim());
  const make = useMutation({
    mutationFn: () => ask(api.POST("/enrolment-tokens", { body: { kind, site: web ? undefined : site.trim() || undefined, max_uses: Number(uses) || 1, ttl_s: Number(ttl), comment: comment || undefined, allow_repeat: repeat, downloads: downloads.trim() || undefined } })),
    onSuccess: done,
  });
  const errors = errorsAt(make.error);
  const at = { site: errors.at("site"), uses: errors.at("max_uses"), comment: errors.at("comment"), downloads: errors.at("downloads") };
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        make.mutate();
      }}
    >
      <Stack gap="md">
        <SegmentedControl aria-label="Kind of node" className={classes.kinds} value={kind} onChange={(k) => setKind(k as Kind)} data={[{ value: "extender", label: "Extender" }, { value: "router", label: "Router" }, { value: "carrier", label: "Carrier" }, { value: "webproxy", label: "Web proxy" }, { value: "host", label: "Host itself" }]} />
        <Text size="sm" c="dimmed">
          {kind === "extender" && "Stands in a private network and makes its hosts reachable from core."}
          {kind === "router" && "Forwards packets of network sessions, and nothing else."}
          {kind === "carrier" && "Runs the browsers of web sessions in containers. It needs Docker and the image caponier-browser (make images)."}
          {kind === "webproxy" && "The only way out for those browsers: it enforces the rules and puts credentials in. Carriers must reach its port 18443."}
          {kind === "host" && "Hosts that register themselves through an extender's deployment listener become targets."}
        </Text>
        {!web && <Autocomplete label="Site" description="The address space the node stands in." placeholder="vpc-a" value={site} onChange={setSite} data={names} error={at.site} required={kind === "extender" || kind === "host"} data-autofocus limit={20} maxLength={63} spellCheck={false} />}
        {web && <Text size="sm" c="dimmed">It serves the targets of every site. The label site=NAME, which you can set when it has arrived, keeps it to one.</Text>}
        {unknown && <Alert variant="light" color="yellow" icon={<IconAlertTriangle size={18} />} p="xs">There is no site <b>{site.trim()}</b> yet: it is made with the token. Check the spelling.</Alert>}
        <Group grow align="flex-start">
          <NumberInput label="How many nodes" description="May enrol with this token." min={1} max={100_000} value={uses} onChange={setUses} error={at.uses} />
          <Select label="Valid for" description="A node needs it once." data={lives.map(([value, label]) => ({ value, label }))} value={ttl} onChange={(v) => setTTL(v ?? "86400")} allowDeselect={false} />
        </Group>
        <TextInput label="Comment" value={comment} onChange={(e) => setComment(e.currentTarget.value)} maxLength={500} error={at.comment} />
        {kind !== "host" && <TextInput label="Where machines find the binaries" description="An https address; only for cloud-init. Leave it out to fill it in later." placeholder="https://downloads.example.org" value={downloads} onChange={(e) => setDownloads(e.currentTarget.value)} error={at.downloads} spellCheck={false} />}
        {kind !== "host" && <Checkbox label="A node of the same name may enrol again" description="Its former identity ends at that moment." checked={repeat} onChange={(e) => setRepeat(e.currentTarget.checked)} />}
        {make.error && (errors.others().length > 0 || asError(make.error).errors.length === 0) && <ErrorBox error={errors.rest()} />}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={close}>Cancel</Button>
          <Button type="submit" loading={make.isPending}>Make the token</Button>
        </Group>
      </Stack>
    </form>
  );
}

const ways = [["shell", "By hand", "As any user; it runs in the foreground."], ["systemd", "systemd", "In a root shell; put the binary into /usr/bin before."], ["docker", "Docker", "In the directory of the binary."], ["cloud_init", "cloud-init", "As user data of a new machine or an autoscaling group."]] as const;

function Run({ made, close }: { made: Made; close: () => void }) {
  const there = ways.filter(([key]) => made.commands[key]);
  return (
    <Stack gap="md">
      <Text size="sm">
        The token is shown <b>only now</b>. It makes {made.max_uses === 1 ? "one node" : `up to ${made.max_uses} nodes`} of kind {kindWord(made.kind).toLowerCase()}{made.site ? <> in site <b>{made.site}</b></> : ""} and ends <Ago at={made.expires_at} />.
      </Text>
      {made.site_created && <Alert variant="light" color="yellow" icon={<IconAlertTriangle size={18} />} p="xs">There was no site <b>{made.site}</b>: it was made now. If that was a slip, revoke the token and delete the site.</Alert>}
      <Tabs defaultValue={made.commands.systemd ? "systemd" : "shell"} keepMounted={false}>
        <Tabs.List>{there.map(([key, label]) => <Tabs.Tab key={key} value={key}>{label}</Tabs.Tab>)}</Tabs.List>
        {there.map(([key, , hint]) => (
          <Tabs.Panel key={key} value={key} pt="sm">
            <Text size="sm" c="dimmed" mb={6}>{made.kind === "carrier" && key === "shell" ? "As a user who may use Docker; it runs in the foreground." : hint}</Text>
            <CopyText block text={made.commands[key] ?? ""} label="Copy the command" />
          </Tabs.Panel>
        ))}
      </Tabs>
      {made.kind !== "host" && <Arrivals token={made.id} wanted={made.max_uses} />}
      <Group justify="flex-end"><Button onClick={close}>Done</Button></Group>
    </Stack>
  );
}

// Arrivals shows the nodes that came with the token.
function Arrivals({ token, wanted }: { token: string; wanted: number }) {
  const q = useQuery({ queryKey: ["edge", "list", ""], queryFn: ({ signal }) => ask(api.GET("/edges", { params: { query: { limit: 500 } }, signal })), select: (p) => (p.items ?? []).filter((e) => e.enrolment_token_id === token) });
  const nodes = q.data ?? [];
  return (
    <Alert variant="light" color={nodes.length > 0 ? "sea" : "gray"} icon={nodes.length > 0 ? <IconCircleCheck size={20} /> : undefined} aria-live="polite" p="sm">
      {nodes.length === 0
        ? "Waiting for the first node; it appears here by itself."
        : <>{nodes.length} of {wanted} {wanted === 1 ? "node is" : "nodes are"} here: {nodes.slice(0, 8).map((n, i) => <span key={n.id}>{i > 0 && ", "}<Link to={`/fleet/${n.id}`}>{n.name}</Link>{n.tunnel ? "" : " (not connected yet)"}</span>)}</>}
    </Alert>
  );
}
