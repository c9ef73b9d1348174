import { Alert, Anchor, Button, Checkbox, Group, SimpleGrid, Skeleton, TagsInput, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate, useParams } from "@tanstack/react-router";
import { useState } from "react";
import { api, ask, askFull, asError, type Schemas } from "~/api/client";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";
import { errorsAt } from "../parts/errors";
import { Panel } from "../parts/Panel";
import { Picker } from "../parts/Picker";
import { type Draft, draftOf, specOf, type Target } from "./draft";
import { Certificates } from "./Certificates";
import { Reach } from "./Reach";
import { SignIn } from "./SignIn";
import { Users } from "./Users";
import classes from "./web.module.css";

export interface Part {
  d: Draft;
  set: (change: Partial<Draft>) => void;
  at: (field: string) => string | undefined;
}

// WebTarget makes a web target, or changes the one in the path.
export default function WebTarget() {
  const { id } = useParams({ strict: false }) as { id?: string };
  const q = useQuery({ queryKey: ["target", "one", id], enabled: id !== undefined, queryFn: ({ signal }) => askFull(api.GET("/targets/{id}", { params: { path: { id: id ?? "" } }, signal })) });
  const back = <Anchor component={Link} to={id ? `/admin/targets/${id}` : "/admin/targets"} size="sm">{id ? (q.data?.data.name ?? "Target") : "Targets"}</Anchor>;
  if (!id) return <Form back={back} />;
  if (q.error && !q.data) return <Page title="Web target" back={back}><ErrorBox error={q.error} again={() => void q.refetch()} /></Page>;
  if (!q.data) return <Page title="Web target" back={back}><Skeleton height={160} radius={12} /><Skeleton height={240} radius={12} /></Page>;
  return <Form key={q.data.data.id} was={q.data.data} etag={q.data.etag} back={back} />;
}

function Form({ was, etag, back }: { was?: Target; etag?: string; back: React.ReactNode }) {
  const go = useNavigate();
  const client = useQueryClient();
  const [d, setDraft] = useState(() => draftOf(was));
  const [version] = useState(etag); // of what the draft began with
  const set = (change: Partial<Draft>) => setDraft((now) => ({ ...now, ...change }));
  const { web, problems } = specOf(d);
  const plain = /^http:/i.test(d.start);
  const save = useMutation({
    mutationFn: (): Promise<Target> => {
      const body: Schemas["TargetSettings"] = { name: d.name, kind: "web", site: d.site, comment: d.comment, tags: d.tags, disabled: d.disabled, web: { ...web, insecure: plain && d.insecure } };
      if (!was) return ask(api.POST("/targets", { body }));
      return ask(api.PUT("/targets/{id}", { params: { path: { id: was.id }, header: { "If-Match": version } }, body }));
    },
    onSuccess: (t) => {
      void client.invalidateQueries({ queryKey: ["target"] });
      void go({ href: `/admin/targets/${t.id}` });
    },
  });
  const errors = errorsAt(save.error);
  const part: Part = { d, set, at: errors.at };
  const e = save.error && asError(save.error);
  return (
    <Page title={was ? `Edit ${was.name}` : "Add a web target"} back={back} hint="People open it in a browser that runs apart from their computer, signed in with a credential they never see.">
      <form
        className={classes.form}
        onSubmit={(ev) => {
          ev.preventDefault();
          save.mutate();
        }}
      >
        <Panel title="The application">
          <SimpleGrid cols={{ base: 1, sm: 2 }} spacing="md">
            <TextInput label="Name" description="What people look for." placeholder="wiki" value={d.name} onChange={(x) => set({ name: x.currentTarget.value })} error={errors.at("name")} required data-autofocus spellCheck={false} />
            <Picker of="site" label="Site" description="Empty: reached by the webproxy itself." value={d.site} onChange={(site) => set({ site })} error={errors.at("site")} clearable />
          </SimpleGrid>
          <TextInput mt="md" label="Start URL" description="Where sessions begin." placeholder="https://wiki.example.org/" value={d.start} onChange={(x) => set({ start: x.currentTarget.value })} error={errors.at("web.start_url")} required spellCheck={false} type="url" />
          {plain && (
            <Alert mt="sm" variant="light" color="yellow" p="xs">
              <Checkbox label="Permit http" description="Everybody on the way between webproxy and application can read and change what is sent, the credential too." checked={d.insecure} onChange={(x) => set({ insecure: x.currentTarget.checked })} />
            </Alert>
          )}
          <SimpleGrid cols={{ base: 1, sm: 2 }} spacing="md" mt="md">
            <TextInput label="Comment" description="Its users see it." value={d.comment} onChange={(x) => set({ comment: x.currentTarget.value })} error={errors.at("comment")} />
            <TagsInput label="Tags" description="name or name=value; grants can open all targets with a tag." value={d.tags} onChange={(tags) => set({ tags })} error={errors.at("tags")} />
          </SimpleGrid>
          {was && <Checkbox mt="md" label="Out of service" description="Nobody gets there; open sessions end." checked={d.disabled} onChange={(x) => set({ disabled: x.currentTarget.checked })} />}
        </Panel>
        <SignIn {...part} problems={problems} />
        <Reach {...part} id={was?.id} />
        <Certificates {...part} />
        <Users {...part} />
        <div className={classes.save}>
          {e && e.status !== 412 && (errors.others().length > 0 || e.errors.length === 0) && <ErrorBox error={errors.rest()} />}
          {e && e.errors.length > 0 && errors.others().length === 0 && <Text size="sm" c="red" role="alert">Some fields above need another look.</Text>}
          <Group justify="space-between" gap="xs">
            <Text size="sm" c="dimmed">{problems.length > 0 ? problems[0] : was ? "" : "Add an account and a grant afterwards."}</Text>
            <Group gap="xs">
              <Button variant="default" renderRoot={(p) => <Link {...p} to={was ? `/admin/targets/${was.id}` : "/admin/targets"} />}>Cancel</Button>
              <Button type="submit" loading={save.isPending} disabled={problems.length > 0 || d.name === "" || d.start === ""}>{was ? "Save" : "Add"}</Button>
            </Group>
          </Group>
        </div>
      </form>
    </Page>
  );
}
