import { Alert, Button, Checkbox, Group, NumberInput, SegmentedControl, Select, Stack, Text, Textarea, TextInput } from "@mantine/core";
import { useState } from "react";
import { type Fill, type Injection, type Login, locate, type Recipe, type Step } from "./recipe";
import { Rows } from "./Rows";
import classes from "./web.module.css";

const kinds = [
  { value: "form", label: "Form field" }, { value: "multipart", label: "Multipart field" }, { value: "json", label: "JSON property" }, { value: "basic", label: "Basic" }, { value: "digest", label: "Digest" },
  { value: "bearer", label: "Bearer" }, { value: "header", label: "Header" }, { value: "client_cert", label: "Client certificate" },
];
const values = [{ value: "username", label: "User name" }, { value: "password", label: "Password" }, { value: "totp", label: "One-time code" }];
const named = (kind: string) => ["form", "multipart", "json", "header"].includes(kind);
const mono = { input: "mono" };

interface Props {
  recipe: Recipe;
  start: string;
  onChange: (r: Recipe) => void;
}

// Advanced edits a recipe part by part, or as JSON.
export function Advanced({ recipe, start, onChange }: Props) {
  const [raw, setRaw] = useState<string>();
  const origin = locate("", start)?.origin ?? "https://";
  const injections = recipe.injections ?? [];
  return (
    <Stack gap="lg">
      <SegmentedControl
        aria-label="How to edit the recipe" value={raw === undefined ? "rows" : "json"} onChange={(v) => setRaw(v === "json" ? JSON.stringify(recipe, null, 2) : undefined)} data={[{ value: "rows", label: "Part by part" }, { value: "json", label: "As JSON" }]} style={{ alignSelf: "flex-start" }}
      />
      {raw !== undefined ? <Raw text={raw} onText={setRaw} onChange={onChange} /> : (
        <>
          <div>
            <Text fw={500} size="sm">Where the credential goes</Text>
            <Text size="xs" c="dimmed" mb={6}>Each is bound to one site, and better to one path. A placeholder anywhere else stays one.</Text>
            <Rows<Injection>
              label="place" rows={injections} onChange={(list) => onChange({ ...recipe, injections: list })} empty="Nowhere yet."
              fresh={() => ({ id: freeID(injections), kind: "form", origin, field: "", value: "password" })}
              render={(r, set, i) => <InjectionRow r={r} set={set} n={i + 1} />}
            />
          </div>
          <div>
            <Text fw={500} size="sm">Pages that are filled in</Text>
            <Text size="xs" c="dimmed" mb={6}>A script of the webproxy writes placeholders into these fields.</Text>
            <Rows<Fill>
              label="page" rows={recipe.fills ?? []} onChange={(fills) => onChange({ ...recipe, fills })} empty="None."
              fresh={() => ({ origin, path: "", fields: [{ selector: "", value: "password", injection: injections[0]?.id ?? "" }] })}
              render={(f, set, i) => <FillRow f={f} set={set} n={i + 1} injections={injections} />}
            />
          </div>
          <LoginRows login={recipe.login} onChange={(login) => onChange({ ...recipe, login })} />
        </>
      )}
    </Stack>
  );
}

function InjectionRow({ r, set, n }: { r: Injection; set: (c: Partial<Injection>) => void; n: number }) {
  return (
    <>
      <TextInput label="ID" value={r.id} onChange={(e) => set({ id: e.currentTarget.value })} required w={120} spellCheck={false} />
      <Select label="Kind" data={kinds} value={r.kind} onChange={(kind) => set({ kind: kind ?? "form", ...(named(kind ?? "") ? {} : { field: undefined }) })} allowDeselect={false} w={155} />
      {named(r.kind) && <TextInput label={r.kind === "json" ? "Property" : r.kind === "header" ? "Header" : "Field"} placeholder={r.kind === "json" ? "user.password" : ""} value={r.field ?? ""} onChange={(e) => set({ field: e.currentTarget.value })} required className={classes.host} classNames={mono} spellCheck={false} />}
      {!["basic", "digest", "client_cert"].includes(r.kind) && <Select label="Value" data={values} value={r.value ?? "password"} onChange={(value) => set({ value: value ?? "password" })} allowDeselect={false} w={145} />}
      <TextInput label="Site" placeholder="https://host" value={r.origin} onChange={(e) => set({ origin: e.currentTarget.value.trim() })} required className={classes.host} classNames={mono} spellCheck={false} />
      <TextInput label="Path" placeholder="any; /login$ is exact" value={r.path ?? ""} onChange={(e) => set({ path: e.currentTarget.value.trim() || undefined })} className={classes.host} classNames={mono} spellCheck={false} />
      <TextInput label="Method" placeholder="usual" value={r.method ?? ""} onChange={(e) => set({ method: e.currentTarget.value.trim().toUpperCase() || undefined })} w={90} spellCheck={false} />
      {(r.kind === "header" || r.kind === "bearer") && <TextInput label="Before the value" value={r.prefix ?? ""} onChange={(e) => set({ prefix: e.currentTarget.value || undefined })} w={130} spellCheck={false} />}
      <NumberInput label="Times" description="" placeholder="usual" min={0} value={r.times || ""} onChange={(v) => set({ times: Number(v) || undefined })} w={84} hideControls />
      <Checkbox label="Also without checked encryption" aria-label={`Place ${n}: also without checked encryption`} checked={r.insecure ?? false} onChange={(e) => set({ insecure: e.currentTarget.checked || undefined })} className={classes.wide} />
    </>
  );
}

function FillRow({ f, set, n, injections }: { f: Fill; set: (c: Partial<Fill>) => void; n: number; injections: readonly Injection[] }) {
  return (
    <>
      <TextInput label="Site" value={f.origin} onChange={(e) => set({ origin: e.currentTarget.value.trim() })} required className={classes.host} classNames={mono} spellCheck={false} />
      <TextInput label="Path" placeholder="any; /login$ is exact" value={f.path ?? ""} onChange={(e) => set({ path: e.currentTarget.value.trim() || undefined })} className={classes.host} classNames={mono} spellCheck={false} />
      <TextInput label="Button to press" placeholder="people press it" value={f.submit ?? ""} onChange={(e) => set({ submit: e.currentTarget.value || undefined })} className={classes.host} classNames={mono} spellCheck={false} />
      <div className={classes.nested}>
        <Rows
          label="field" rows={f.fields ?? []} onChange={(fields) => set({ fields })} empty="No field yet." fresh={() => ({ selector: "", value: "password", injection: injections[0]?.id ?? "" })}
          render={(x, setField, i) => (
            <>
              <TextInput aria-label={`Selector of field ${i + 1} of page ${n}`} placeholder="name or CSS selector" value={x.selector} onChange={(e) => setField({ selector: e.currentTarget.value })} required className={classes.host} classNames={mono} spellCheck={false} />
              <Select
                aria-label={`Place of field ${i + 1} of page ${n}`} placeholder="goes to" data={injections.filter((j) => named(j.kind) && j.kind !== "header").map((j) => j.id)} value={x.injection || null}
                onChange={(id) => setField({ injection: id ?? "", value: injections.find((j) => j.id === id)?.value ?? x.value })} w={170} allowDeselect={false}
              />
            </>
          )}
        />
      </div>
    </>
  );
}

const fresh: Login = { steps: [{ method: "POST", url: "/login", body: "user={{username}}&password={{sha256 password}}" }] };

// LoginRows are requests the proxy sends itself, for pages that hash passwords.
function LoginRows({ login, onChange }: { login?: Login; onChange: (l: Login | undefined) => void }) {
  return (
    <div>
      <Text fw={500} size="sm">A login that the webproxy makes</Text>
      <Text size="xs" c="dimmed" mb={6}>For pages that hash the password in script. Its cookies are handed to the browser. {"{{username}}, {{password}}, {{totp}}, {{sha256 password}}, {{md5 password}}"} and what was extracted before stand for values.</Text>
      {!login ? <Button size="xs" variant="default" onClick={() => onChange(fresh)}>Add a login</Button> : (
        <>
          <Rows<Step>
            label="request" ordered rows={login.steps ?? []} onChange={(steps) => onChange(steps.length > 0 ? { ...login, steps } : undefined)} empty="" fresh={() => ({ method: "POST", url: "/login" })}
            render={(s, set, i) => (
              <>
                <Select label="Method" data={["GET", "POST", "PUT"]} value={s.method} onChange={(method) => set({ method: method ?? "POST" })} allowDeselect={false} w={100} />
                <TextInput label="URL" placeholder="/login" value={s.url} onChange={(e) => set({ url: e.currentTarget.value })} required className={classes.host} classNames={mono} spellCheck={false} />
                <Textarea label="Body" value={s.body ?? ""} onChange={(e) => set({ body: e.currentTarget.value || undefined })} autosize minRows={1} maxRows={8} className={classes.wide} classNames={mono} spellCheck={false} />
                <Pairs label="Headers" hint="Name: value, a line each" separator=":" value={s.headers} onChange={(headers) => set({ headers })} n={i + 1} />
                <Pairs label="Take from the answer" hint="name = regular expression with one group" separator="=" value={s.extract} onChange={(extract) => set({ extract })} n={i + 1} />
              </>
            )}
          />
          <Group gap="sm" mt="sm" align="flex-end">
            <NumberInput label="Last answer's status" placeholder="any good one" min={0} max={599} value={login.status || ""} onChange={(v) => onChange({ ...login, status: Number(v) || undefined })} hideControls w={150} />
            <TextInput label="Cookie it must set" placeholder="any" value={login.cookie ?? ""} onChange={(e) => onChange({ ...login, cookie: e.currentTarget.value.trim() || undefined })} w={170} spellCheck={false} />
            <Button size="sm" variant="subtle" color="red" onClick={() => onChange(undefined)}>Remove the login</Button>
          </Group>
        </>
      )}
    </div>
  );
}

// Pairs edits a map as lines of text; what is typed stays until the lines read well.
function Pairs({ label, hint, separator, value, onChange, n }: { label: string; hint: string; separator: string; value?: Record<string, string>; onChange: (v: Record<string, string> | undefined) => void; n: number }) {
  const [text, setText] = useState(() => Object.entries(value ?? {}).map(([k, v]) => `${k}${separator} ${v}`).join("\n"));
  return (
    <Textarea
      label={label} aria-label={`${label} of request ${n}`} placeholder={hint} value={text} autosize minRows={1} maxRows={6} className={classes.host} classNames={mono} spellCheck={false}
      onChange={(e) => {
        const t = e.currentTarget.value;
        setText(t);
        const pairs = t.split("\n").map((l) => [l.slice(0, l.indexOf(separator)).trim(), l.slice(l.indexOf(separator) + 1).trim()] as const).filter(([k, v], i) => (t.split("\n")[i] ?? "").includes(separator) && k && v);
        onChange(pairs.length > 0 ? Object.fromEntries(pairs) : undefined);
      }}
    />
  );
}

function Raw({ text, onText, onChange }: { text: string; onText: (t: string) => void; onChange: (r: Recipe) => void }) {
  const [wrong, setWrong] = useState("");
  return (
    <div>
      <Textarea
        label="Recipe" value={text} autosize minRows={10} maxRows={30} classNames={mono} spellCheck={false}
        onChange={(e) => {
          const t = e.currentTarget.value;
          onText(t);
          try {
            const r: unknown = JSON.parse(t);
            if (typeof r !== "object" || r === null || Array.isArray(r)) throw new Error("It must be an object.");
            onChange(r as Recipe);
            setWrong("");
          } catch (x) {
            setWrong(x instanceof Error ? x.message : String(x));
          }
        }}
      />
      {wrong && <Alert mt="xs" variant="light" color="orange" p="xs" role="status">Not taken over yet: {wrong}</Alert>}
    </div>
  );
}

// freeID is a name no injection has.
function freeID(list: readonly Injection[]): string {
  for (let n = list.length + 1; ; n++) if (!list.some((i) => i.id === `place-${n}`)) return `place-${n}`;
}
