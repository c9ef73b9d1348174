import { Alert, Button, Group, Skeleton, Text } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useCallback, useMemo, useState } from "react";
import { api, ask, askFull, asError, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { useReloaded } from "~/ui/conflict";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";
import { Ago } from "~/ui/Time";
import { errorsAt } from "../parts/errors";
import { Panel } from "../parts/Panel";
import { SettingInput } from "./Input";
import { changed, read, shownDefault, show } from "./value";
import classes from "./Settings.module.css";

type Schema = Schemas["SettingsSchema"];
type Value = Schemas["SettingsValue"];

const sectionNames: Record<string, string> = { login: "Signing in", password: "Passwords", session: "Sessions", token: "Tokens", connection: "Connections", bastion: "SSH front door", recording: "Recordings", retention: "Keeping" };

export default function Settings() {
  const schema = useQuery({ queryKey: ["setting", "schema"], queryFn: ({ signal }) => ask(api.GET("/settings/schema", { signal })) });
  const values = useQuery({ queryKey: ["setting", "values"], queryFn: ({ signal }) => askFull(api.GET("/settings", { signal })) });
  const error = schema.error ?? values.error;
  if (error && !values.data) return <Page title="Settings"><ErrorBox error={error} again={() => { void schema.refetch(); void values.refetch(); }} /></Page>;
  if (!schema.data || !values.data) return <Page title="Settings">{[0, 1, 2].map((i) => <Skeleton key={i} height={200} radius={12} />)}</Page>;
  return <Form schema={schema.data.items ?? []} newest={{ values: values.data.data.items ?? [], etag: values.data.etag }} />;
}

// State is all settings at one moment.
interface State {
  values: Value[];
  etag: string;
}

function Form({ schema, newest }: { schema: Schema[]; newest: State }) {
  const { can } = useSession();
  const client = useQueryClient();
  const may = can("settings:manage");
  const [edits, setEdits] = useState<Record<string, string>>({});
  // What the edits were made on. It is what they are saved over, also when
  // somebody else was faster: then core refuses, and nobody's change is lost.
  const [base, setBase] = useState<State>();
  const { values, etag } = base ?? newest;
  const now = useMemo(() => new Map(values.map((v) => [v.name, v])), [values]);
  const edit = (name: string, text: string) => {
    setBase((b) => b ?? newest);
    setEdits((e) => ({ ...e, [name]: text }));
  };
  const forget = useCallback(() => {
    setEdits({});
    setBase(undefined);
  }, []);
  useReloaded(forget);
  const dirty = schema.filter((s) => s.name in edits && changed(s, now.get(s.name)?.value, edits[s.name] ?? ""));
  const save = useMutation({
    mutationFn: () => askFull(api.PUT("/settings", { params: { header: { "If-Match": etag } }, body: { values: Object.fromEntries(dirty.map((s) => [s.name, read(s, edits[s.name] ?? "")])) } })),
    onSuccess: ({ data }) => {
      notifications.show({ message: data.restart_required ? "Saved. One of them acts after core is restarted." : "Saved. It acts now, on every core." });
      forget();
      void client.invalidateQueries({ queryKey: ["setting"] });
    },
  });
  const errors = errorsAt(save.error);
  const sections = [...new Set(schema.map((s) => s.section))];
  const restart = dirty.some((s) => s.restart_required);
  const boxes = sections.map((section) => (
    <Panel key={section} title={sectionNames[section] ?? section.charAt(0).toUpperCase() + section.slice(1)}>
      <div className={classes.list}>
        {schema.filter((s) => s.section === section).map((s) => {
          const v = now.get(s.name);
          const text = edits[s.name] ?? show(s, v?.value);
          return (
            <div key={s.name} className={classes.row} data-changed={dirty.includes(s) || undefined}>
              <div>
                <label htmlFor={s.name} className={classes.name}>{s.name}</label>
                {s.restart_required && <Text span ml={8} size="xs" fw={400} c="dimmed">after a restart</Text>}
                <Text size="sm" c="dimmed" id={`${s.name}-about`}>{s.description}</Text>
                <Text size="xs" c="dimmed">Default {shownDefault(s)}{v?.changed_at && <>; set <Ago at={v.changed_at} /></>}</Text>
              </div>
              <div className={classes.input}>
                <SettingInput schema={s} value={text} onChange={(t) => edit(s.name, t)} error={errors.at(`values.${s.name}`)} disabled={!may} />
                {may && text !== show(s, s.default) && <Button size="compact-xs" variant="subtle" onClick={() => edit(s.name, show(s, s.default))}>Default</Button>}
              </div>
            </div>
          );
        })}
      </div>
    </Panel>
  ));
  return (
    <Page title="Settings" hint="They hold for every core of the fleet. What a core needs before it has a database stands in its configuration file.">
      {save.error && asError(save.error).status !== 412 && <ErrorBox error={errors.others().length > 0 || asError(save.error).errors.length === 0 ? errors.rest() : save.error} />}
      {boxes}
      {dirty.length > 0 && (
        <div className={classes.bar} role="region" aria-label="Unsaved changes">
          <Alert variant="light" color={restart ? "yellow" : "sea"} p="xs" className={classes.say}>
            {dirty.length === 1 ? "One setting is" : `${dirty.length} settings are`} changed. {restart ? "One of them acts only after core is restarted." : "They act as soon as they are saved."}
          </Alert>
          <Group gap="xs" wrap="nowrap"><Button variant="default" onClick={() => { forget(); save.reset(); }}>Undo</Button><Button loading={save.isPending} onClick={() => save.mutate()}>Save</Button></Group>
        </div>
      )}
    </Page>
  );
}
