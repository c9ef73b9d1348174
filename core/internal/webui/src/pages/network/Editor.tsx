import { Alert, Button, Checkbox, Group, Modal, Select, Stack, TagsInput, Text, Textarea, TextInput } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask, askFull } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { useReloaded } from "~/ui/conflict";
import { ErrorBox } from "~/ui/ErrorBox";
import { fieldErrors } from "~/ui/form";
import { line, type NetworkText, parseAll, type Target } from "./network";
import { Simulation } from "./Simulation";

// Editor makes a network target, or changes the one with the ID.
export function Editor({ opened, id, close }: { opened: boolean; id?: string; close: () => void }) {
  const { can } = useSession();
  const read = useQuery({
    queryKey: ["target", id, "network"], enabled: opened && id !== undefined, staleTime: 0, gcTime: 0, refetchOnMount: "always",
    queryFn: ({ signal }) => askFull(api.GET("/targets/{id}", { params: { path: { id: id ?? "" } }, signal })),
  });
  const title = id === undefined ? "New network target" : (read.data?.data.name ?? "Network target");
  return (
    <Modal opened={opened} onClose={close} title={title} size="xl">
      {opened && id === undefined && <Form close={close} readOnly={false} />}
      {opened && id !== undefined && read.error && <ErrorBox error={read.error} again={() => void read.refetch()} />}
      {opened && id !== undefined && read.data && <Form key={read.data.etag} was={read.data.data} etag={read.data.etag} close={close} readOnly={!can("targets:manage")} />}
    </Modal>
  );
}

interface Draft {
  name: string;
  site: string;
  comment: string;
  tags: string[];
  disabled: boolean;
  lines: string;
  snat: boolean;
  exclusive: boolean;
  instructions: string;
  provider: string;
  static: string;
}

function draftOf(t?: Target): Draft {
  const n = t?.network;
  return {
    name: t?.name ?? "", site: t?.site ?? "", comment: t?.comment ?? "", tags: t?.tags ?? [], disabled: t?.disabled ?? false,
    lines: n?.destinations.map(line).join("\n") ?? "", snat: n?.snat ?? false, exclusive: n?.exclusive ?? false,
    instructions: n?.instructions ?? "", provider: n?.provider ?? "", static: n?.static === undefined ? "" : JSON.stringify(n.static, null, 2),
  };
}

// networkOf reads a draft; problems are what core need not be asked about.
function networkOf(d: Draft): { network: NetworkText; problems: string[] } {
  const { destinations, problems } = parseAll(d.lines);
  const network: NetworkText = { destinations, snat: d.snat, exclusive: d.exclusive, instructions: d.instructions, provider: d.provider as NetworkText["provider"] };
  if (d.provider && d.static.trim()) {
    try {
      network.static = JSON.parse(d.static) as NetworkText["static"];
    } catch {
      problems.push("The static configuration is not JSON.");
    }
  }
  if (destinations.length === 0 && problems.length === 0) problems.push("Name at least one destination.");
  return { network, problems };
}

const shown = ["name", "site", "comment", "tags"];

function Form({ was, etag, close, readOnly }: { was?: Target; etag?: string; close: () => void; readOnly: boolean }) {
  const client = useQueryClient();
  const { everywhere } = useSession();
  const [d, setDraft] = useState(() => draftOf(was));
  const [version] = useState(etag); // of what the draft began with
  useReloaded(close);
  const [deleting, setDeleting] = useState(false);
  const set = (part: Partial<Draft>) => setDraft((now) => ({ ...now, ...part }));
  const sites = useQuery({ queryKey: ["site", "names"], queryFn: ({ signal }) => ask(api.GET("/sites", { params: { query: { limit: 500 } }, signal })) });
  const { network, problems } = networkOf(d);
  const done = () => {
    void client.invalidateQueries({ queryKey: ["target"] });
    close();
  };
  const save = useMutation({
    mutationFn: async (): Promise<unknown> => {
      const body = { name: d.name, kind: "network" as const, site: d.site || undefined, comment: d.comment, tags: d.tags, disabled: d.disabled, network };
      if (!was) return ask(api.POST("/targets", { body }));
      return ask(api.PUT("/targets/{id}", { params: { path: { id: was.id }, header: { "If-Match": version } }, body }));
    },
    onSuccess: done,
  });
  const wrong = fieldErrors(save.error, shown);
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        save.mutate();
      }}
    >
      <fieldset disabled={readOnly} style={{ border: 0, padding: 0, margin: 0, minWidth: 0 }}>
        <Stack gap="sm">
          <Group grow align="start">
            <TextInput label="Name" description="Unique; users open it by this name" required value={d.name} onChange={(e) => set({ name: e.currentTarget.value })} error={wrong.byField.name} placeholder="plc-line-3" data-autofocus />
            <Select label="Reached" description="By the router itself, or through a site" value={d.site} onChange={(v) => set({ site: v ?? "" })} error={wrong.byField.site} data={[{ value: "", label: "By the router itself" }, ...(sites.data?.items?.map((s) => ({ value: s.name, label: `Through site ${s.name}` })) ?? [])]} allowDeselect={false} />
          </Group>
          <Textarea
            label="Destinations" description="One per line: address, network or range; protocol; ports. After an arrow where packets are sent instead." required autosize minRows={4} maxRows={16}
            value={d.lines} onChange={(e) => set({ lines: e.currentTarget.value })} placeholder={"10.20.0.0/24 tcp 502\n10.20.0.10-10.20.0.19 udp 161\n10.20.0.5 tcp 80 -> 192.168.1.5:8080"}
            error={problems.length > 0 && d.lines !== "" ? problems.slice(0, 4).join(" ") : undefined} styles={{ input: { fontFamily: "var(--mantine-font-family-monospace)", fontSize: 13 } }}
          />
          <Group gap="lg">
            <Checkbox label="Exclusive" description="While somebody uses it, nobody else uses what overlaps it" checked={d.exclusive} onChange={(e) => set({ exclusive: e.currentTarget.checked })} />
            <Checkbox label="Hide clients (SNAT)" description="Targets see the router's own address" checked={d.snat} onChange={(e) => set({ snat: e.currentTarget.checked })} />
            <Checkbox label="Disabled" description="Nobody can open it; open sessions end" checked={d.disabled} onChange={(e) => set({ disabled: e.currentTarget.checked })} />
          </Group>
          <Textarea label="Instructions for users" value={d.instructions} onChange={(e) => set({ instructions: e.currentTarget.value })} autosize minRows={2} maxLength={4000} />
          <Group grow align="start">
            <TextInput label="Comment" value={d.comment} onChange={(e) => set({ comment: e.currentTarget.value })} error={wrong.byField.comment} maxLength={1000} />
            <TagsInput label="Tags" value={d.tags} onChange={(tags) => set({ tags })} error={wrong.byField.tags} />
          </Group>
          <Select label="Static configuration" description="Passed on by routers of type exec and sshexec" value={d.provider} onChange={(v) => set({ provider: v ?? "" })} allowDeselect={false} data={[{ value: "", label: "None" }, { value: "generic", label: "Generic: any JSON object" }, { value: "NQX", label: "NQX: type, source_id, source_name" }]} maw={360} />
          {d.provider && <Textarea aria-label="Static configuration in JSON" value={d.static} onChange={(e) => set({ static: e.currentTarget.value })} autosize minRows={4} placeholder={d.provider === "NQX" ? '{"type": "l3rules", "source_id": "…UUID…", "source_name": "…"}' : "{}"} styles={{ input: { fontFamily: "var(--mantine-font-family-monospace)", fontSize: 13 } }} />}
          {problems.length === 0 && !readOnly && everywhere("targets:manage") && <Simulation id={was?.id} site={d.site} network={network} />}
          {save.error && (wrong.others.length > 0 || Object.keys(wrong.byField).length === 0) && <ErrorBox error={save.error} />}
          {!readOnly && (
            <Group justify="space-between">
              {was ? <Button variant="subtle" color="red" onClick={() => setDeleting(true)}>Delete</Button> : <Text size="sm" c="dimmed">Open it to a role with a grant afterwards.</Text>}
              <Group gap="xs">
                <Button variant="default" onClick={close}>Cancel</Button>
                <Button type="submit" loading={save.isPending} disabled={problems.length > 0 || d.name === ""}>Save</Button>
              </Group>
            </Group>
          )}
        </Stack>
      </fieldset>
      {readOnly && <Alert mt="md" variant="light">You may look at this target, not change it.</Alert>}
      <Confirm
        opened={deleting} close={() => setDeleting(false)} title={`Delete ${was?.name ?? ""}?`} action="Delete" danger
        run={async () => {
          await ask(api.DELETE("/targets/{id}", { params: { path: { id: was?.id ?? "" }, header: { "If-Match": version } } }));
          done();
        }}
      >
        Its grants go with it, and open sessions end.
      </Confirm>
    </form>
  );
}
