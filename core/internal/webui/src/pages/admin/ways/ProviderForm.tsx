import { ActionIcon, Button, Checkbox, Fieldset, Group, PasswordInput, Select, SimpleGrid, Stack, Text, Textarea, TextInput } from "@mantine/core";
import { IconPlus, IconX } from "@tabler/icons-react";
import { api, ask, type Schemas } from "~/api/client";
import { FormModal } from "../parts/FormModal";
import { Picker } from "../parts/Picker";
import { choices, linkWords, type Provider, some, tag, words } from "./words";

type Config = Schemas["SigninProviderConfig"];

interface Values {
  name: string;
  enabled: boolean;
  secret: string;
  open: boolean; // a public client: without a secret
  config: Config;
  scopes: string;
  domains: string;
  mfa: string;
}

const initial = (p?: Provider): Values => {
  const config: Config = p?.config ?? { label: "", issuer: "", client_id: "", link: "none" };
  return {
    name: p?.name ?? "", enabled: p?.enabled ?? true, secret: "", open: p ? !p.has_secret : false, config,
    scopes: config.scopes?.join(" ") ?? "", domains: config.domains?.join(" ") ?? "", mfa: config.mfa_values?.join(" ") ?? "",
  };
};

const draft = (v: Values): Schemas["SigninProviderDraft"] => ({
  name: v.name.trim(), enabled: v.enabled, secret: v.open ? "" : v.secret || undefined,
  config: { ...v.config, scopes: some(words(v.scopes)), domains: some(words(v.domains)), mfa_values: some(words(v.mfa)), roles: some((v.config.roles ?? []).filter((r) => r.value || r.role)) },
});

// ProviderForm describes a provider. Its client secret is written only.
export function ProviderForm({ opened, close, provider, done }: { opened: boolean; close: () => void; provider?: Provider; done: (p: Provider) => void }) {
  return (
    <FormModal
      opened={opened} close={close} size="xl" title={provider ? `Edit ${provider.config.label}` : "Add a provider"} action={provider ? "Save" : "Add"} topics={["sso_provider"]}
      initial={() => initial(provider)} done={done}
      save={(v) => provider
        ? ask(api.PUT("/sso-providers/{id}", { params: { path: { id: provider.id }, header: tag(provider.version) }, body: draft(v) }))
        : ask(api.POST("/sso-providers", { body: draft(v) }))}
    >
      {({ v, set, at }) => {
        const c = v.config;
        const change = (more: Partial<Config>) => set({ config: { ...c, ...more } });
        return (
          <>
            <SimpleGrid cols={{ base: 1, xs: 2 }} spacing="sm">
              <TextInput label="Name" description="Part of the redirect URI." placeholder="corp" value={v.name} onChange={(e) => set({ name: e.currentTarget.value })} error={at("name")} required data-autofocus spellCheck={false} />
              <TextInput label="Label" description="On the button of the sign-in page." placeholder="Example Corp" value={c.label} onChange={(e) => change({ label: e.currentTarget.value })} error={at("config.label")} required />
            </SimpleGrid>
            <TextInput label="Issuer" description={provider ? "It cannot change: links belong to it." : "Exactly as the provider writes it."} placeholder="https://sso.example.org/realms/main" value={c.issuer} onChange={(e) => change({ issuer: e.currentTarget.value })} error={at("config.issuer")} required readOnly={provider !== undefined} spellCheck={false} />
            <SimpleGrid cols={{ base: 1, xs: 2 }} spacing="sm">
              <TextInput label="Client ID" description="As registered at the provider." value={c.client_id} onChange={(e) => change({ client_id: e.currentTarget.value })} error={at("config.client_id")} required spellCheck={false} />
              <PasswordInput label="Client secret" description={provider?.has_secret ? "Kept and never shown. Empty: as it is." : "Written here and never shown."} value={v.secret} onChange={(e) => set({ secret: e.currentTarget.value })} error={at("secret")} disabled={v.open} required={!v.open && !provider?.has_secret} autoComplete="new-password" />
            </SimpleGrid>
            <Checkbox label="Public client: it has no secret" checked={v.open} onChange={(e) => set({ open: e.currentTarget.checked, secret: "" })} />
            <Fieldset legend="Who comes in" p="md">
              <Stack gap="sm">
                <TextInput label="Mail domains" description="Only people with a verified address in one of them. Empty: everybody the provider knows." placeholder="example.org" value={v.domains} onChange={(e) => set({ domains: e.currentTarget.value })} error={at("config.domains")} spellCheck={false} />
                <Select label="Link people who have an account here" description="Other than by hand, the provider says who somebody is here, administrators included." data={choices(linkWords)} value={c.link ?? "none"} onChange={(link) => change({ link: link as Config["link"] })} allowDeselect={false} error={at("config.link")} />
                <Checkbox label="Make an account for whoever comes first" checked={c.create ?? false} onChange={(e) => change({ create: e.currentTarget.checked })} />
                <Roles value={c.roles ?? []} onChange={(roles) => change({ roles })} error={at("config.roles")} />
              </Stack>
            </Fieldset>
            <Fieldset legend="What the provider says about people" p="md">
              <Stack gap="sm">
                <SimpleGrid cols={{ base: 1, xs: 2 }} spacing="sm">
                  <TextInput label="User name" placeholder="preferred_username" value={c.name_claim ?? ""} onChange={(e) => change({ name_claim: e.currentTarget.value })} error={at("config.name_claim")} spellCheck={false} />
                  <TextInput label="Display name" placeholder="name" value={c.display_claim ?? ""} onChange={(e) => change({ display_claim: e.currentTarget.value })} error={at("config.display_claim")} spellCheck={false} />
                  <TextInput label="Mail address" placeholder="email" value={c.email_claim ?? ""} onChange={(e) => change({ email_claim: e.currentTarget.value })} error={at("config.email_claim")} spellCheck={false} />
                  <TextInput label="Groups" placeholder="groups" value={c.groups_claim ?? ""} onChange={(e) => change({ groups_claim: e.currentTarget.value })} error={at("config.groups_claim")} spellCheck={false} />
                  <TextInput label="Scopes" placeholder="openid profile email" value={v.scopes} onChange={(e) => set({ scopes: e.currentTarget.value })} error={at("config.scopes")} spellCheck={false} />
                  <TextInput label="Counts as two factors" placeholder="mfa" value={v.mfa} onChange={(e) => set({ mfa: e.currentTarget.value })} error={at("config.mfa_values")} spellCheck={false} />
                </SimpleGrid>
                <Text size="xs" c="dimmed">Names of claims; dots reach into objects: <span className="mono">realm_access.roles</span>. Two factors are values of <span className="mono">amr</span> or <span className="mono">acr</span>.</Text>
              </Stack>
            </Fieldset>
            <Textarea label="CA of the provider's certificate" description="PEM; only if it is not a public one." value={c.ca_pem ?? ""} onChange={(e) => change({ ca_pem: e.currentTarget.value })} error={at("config.ca_pem")} autosize minRows={2} maxRows={8} classNames={{ input: "mono" }} spellCheck={false} />
            <Checkbox label="Signing out here signs out at the provider, too" checked={c.logout ?? false} onChange={(e) => change({ logout: e.currentTarget.checked })} />
            <Checkbox label="Offer it on the sign-in page" checked={v.enabled} onChange={(e) => set({ enabled: e.currentTarget.checked })} />
          </>
        );
      }}
    </FormModal>
  );
}

type Rule = Schemas["SigninRoleRule"];

function Roles({ value, onChange, error }: { value: Rule[]; onChange: (rules: Rule[]) => void; error?: string }) {
  const change = (i: number, more: Partial<Rule>) => onChange(value.map((r, n) => (n === i ? { ...r, ...more } : r)));
  return (
    <div>
      <Text size="sm" fw={500}>Roles by groups</Text>
      <Text size="xs" c="dimmed" mb={6}>Brought up to date at every sign-in; roles given by hand stay.</Text>
      <Stack gap={8}>
        {value.map((r, i) => (
          <Group key={i} gap="xs" align="flex-end" wrap="nowrap">
            <TextInput flex={1} label="Group" value={r.value} onChange={(e) => change(i, { value: e.currentTarget.value })} spellCheck={false} required />
            <div style={{ flex: 1, minWidth: 0 }}><Picker of="role" label="Role" value={r.role} onChange={(role) => change(i, { role })} required /></div>
            <ActionIcon variant="subtle" color="gray" size="lg" onClick={() => onChange(value.filter((_, n) => n !== i))} aria-label={`Remove rule ${i + 1}`}><IconX size={17} /></ActionIcon>
          </Group>
        ))}
      </Stack>
      <Button mt={8} size="compact-sm" variant="default" leftSection={<IconPlus size={15} />} onClick={() => onChange([...value, { value: "", role: "" }])}>Add a rule</Button>
      {error && <Text size="sm" c="var(--bad)" role="alert" mt={4}>{error}</Text>}
    </div>
  );
}
