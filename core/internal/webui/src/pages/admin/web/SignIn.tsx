import { Alert, Code, Collapse, Select, SimpleGrid, Stack, Text, TextInput, UnstyledButton } from "@mantine/core";
import { useState } from "react";
import { Panel } from "../parts/Panel";
import { Advanced } from "./Advanced";
import { recipeOf } from "./draft";
import type { Part } from "./Editor";
import { type Preset, presets, type Simple } from "./recipe";

// SignIn says how a session gets in with the stored credential.
export function SignIn({ d, set, at, problems }: Part & { problems: readonly string[] }) {
  const [shown, setShown] = useState(false);
  const s = d.simple;
  const preset = presets.find((p) => p.value === s.preset);
  const change = (c: Partial<Simple>) => set({ simple: { ...s, ...c } });
  const choose = (p: Preset) => {
    // What was built simply is where advanced begins.
    if (p === "advanced") set({ recipe: recipeOf(d), simple: { ...s, preset: p } });
    else change({ preset: p });
  };
  const problem = at("web.policy.recipe");
  return (
    <Panel title="Sign-in" hint="The browser gets a placeholder; the webproxy puts the credential in its place on the way, there and nowhere else.">
      <Stack gap="md">
        <Select label="How" description={preset?.hint} data={presets.map(({ value, label }) => ({ value, label }))} value={s.preset} onChange={(p) => choose((p ?? "none") as Preset)} allowDeselect={false} maw={420} />
        {(s.preset === "form" || s.preset === "json") && <Fields s={s} change={change} />}
        {s.preset === "header" && (
          <SimpleGrid cols={{ base: 1, sm: 2 }} spacing="md">
            <TextInput label="Header" placeholder="X-Auth-Token" value={s.header} onChange={(e) => change({ header: e.currentTarget.value.trim() })} required spellCheck={false} />
            <TextInput label="Before the value" placeholder="Token " value={s.prefix} onChange={(e) => change({ prefix: e.currentTarget.value })} spellCheck={false} />
          </SimpleGrid>
        )}
        {s.preset === "certificate" && <Text size="sm">The account's secret is a JSON document with <Code>certificate</Code> and <Code>key</Code> in PEM.</Text>}
        {s.preset === "bearer" && <Text size="sm">The account's password is the token, or a JSON secret with <Code>token</Code>.</Text>}
        {s.preset === "advanced" && <Advanced recipe={d.recipe} start={d.start} onChange={(recipe) => set({ recipe })} />}
        {problem && <Alert variant="light" color="red" p="xs" role="alert">{problem}</Alert>}
        {problems.length > 0 && d.start !== "" && <Text size="sm" c="orange" role="status">{problems.join(" ")}</Text>}
        {s.preset !== "none" && s.preset !== "advanced" && problems.length === 0 && (
          <div>
            <UnstyledButton fz="sm" c="var(--accent)" onClick={() => setShown(!shown)} aria-expanded={shown}>{shown ? "Hide the recipe" : "Show the recipe it makes"}</UnstyledButton>
            <Collapse expanded={shown}><Code block mt={6} tabIndex={0} aria-label="Recipe">{JSON.stringify(recipeOf(d), null, 2)}</Code></Collapse>
          </div>
        )}
      </Stack>
    </Panel>
  );
}

function Fields({ s, change }: { s: Simple; change: (c: Partial<Simple>) => void }) {
  const [more, setMore] = useState(s.second !== "" || s.totp !== "" || s.usernameSent !== "" || s.passwordSent !== "" || s.totpSent !== "");
  const json = s.preset === "json";
  const text = (key: keyof Simple, label: string, description: string, placeholder = "") => (
    <TextInput key={key} label={label} description={description} placeholder={placeholder} value={s[key]} onChange={(e) => change({ [key]: e.currentTarget.value })} spellCheck={false} classNames={{ input: "mono" }} />
  );
  return (
    <>
      <SimpleGrid cols={{ base: 1, sm: 2 }} spacing="md">
        {text("page", "Login page", "Empty: the start URL.", "/login")}
        {text("request", "Sent to", json ? "The request that carries the login. Empty: any of that site." : "What the form posts to. Empty: any of that site.", json ? "/api/session" : "/login")}
        {text("username", "User name field", "Its name, or a CSS selector. Empty: not filled in.", "username")}
        {text("password", "Password field", "Its name, or a CSS selector.", "password")}
        {text("submit", "Button to press", "A CSS selector. Empty: people press it.", "button[type=submit]")}
      </SimpleGrid>
      <UnstyledButton fz="sm" c="var(--accent)" onClick={() => setMore(!more)} aria-expanded={more}>{more ? "Fewer settings" : "One-time code, a second page, other names"}</UnstyledButton>
      <Collapse expanded={more}>
        <SimpleGrid cols={{ base: 1, sm: 2 }} spacing="md">
          {text("totp", "One-time code field", "The account's secret then holds a TOTP seed.", "otp")}
          {text("second", "Password page", "If the password is asked for on a page of its own.", "/login/password")}
          {text("secondRequest", "That page sends to", "Empty: any of that site.", "")}
          {text("usernameSent", json ? "User name's property" : "User name is sent as", "If other than the field's name.", json ? "user.name" : "")}
          {text("passwordSent", json ? "Password's property" : "Password is sent as", "If other than the field's name.", json ? "user.password" : "")}
          {text("totpSent", json ? "Code's property" : "Code is sent as", "If other than the field's name.")}
        </SimpleGrid>
      </Collapse>
    </>
  );
}
