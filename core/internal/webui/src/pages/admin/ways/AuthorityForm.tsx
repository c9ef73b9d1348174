import { Checkbox, Fieldset, Select, SimpleGrid, Stack, TextInput } from "@mantine/core";
import { api, ask, type Schemas } from "~/api/client";
import { FormModal } from "../parts/FormModal";
import { PemInput } from "./PemInput";
import { type Authority, choices, fieldWords, tag } from "./words";

type Draft = Schemas["SigninAnchorDraft"];

const initial = (a?: Authority): Draft => ({
  name: a?.name ?? "", enabled: a?.enabled ?? true, bundle_pem: a?.bundle_pem ?? "", config: a?.config ?? { field: "san_upn", lookup: "name" },
});

// AuthorityForm says whose certificates are good and how one names a user.
export function AuthorityForm({ opened, close, authority }: { opened: boolean; close: () => void; authority?: Authority }) {
  return (
    <FormModal
      opened={opened} close={close} size="lg" title={authority ? `Edit ${authority.name}` : "Trust an authority"} action={authority ? "Save" : "Trust"} topics={["certificate_anchor"]} initial={() => initial(authority)}
      save={(v) => authority
        ? ask(api.PUT("/certificate-anchors/{id}", { params: { path: { id: authority.id }, header: tag(authority.version) }, body: v }))
        : ask(api.POST("/certificate-anchors", { body: v }))}
    >
      {({ v, set, at }) => {
        const c = v.config;
        const change = (more: Partial<Draft["config"]>) => set({ config: { ...c, ...more } });
        return (
          <>
            <TextInput label="Name" placeholder="staff cards" value={v.name} onChange={(e) => set({ name: e.currentTarget.value })} error={at("name")} required data-autofocus />
            <PemInput label="Certificates" description="The authority's, with its intermediates if clients do not send them." value={v.bundle_pem} onChange={(bundle_pem) => set({ bundle_pem })} error={at("bundle_pem")} placeholder="-----BEGIN CERTIFICATE-----" />
            <Fieldset legend="Who a certificate stands for" p="md">
              <Stack gap="sm">
                <SimpleGrid cols={{ base: 1, xs: 2 }} spacing="sm">
                  <Select label="Part of the certificate" data={choices(fieldWords)} value={c.field} onChange={(f) => f && change({ field: f })} allowDeselect={false} error={at("config.field")} />
                  <Select label="Is somebody's" data={[{ value: "name", label: "user name" }, { value: "email", label: "mail address" }]} value={c.lookup ?? "name"} onChange={(l) => change({ lookup: l === "email" ? "email" : "name" })} allowDeselect={false} error={at("config.lookup")} />
                </SimpleGrid>
                <TextInput label="Pattern" description="The whole value must match; its first group, or else all of it, is looked up. Empty: anything." placeholder="(.*)@corp\.example" value={c.pattern ?? ""} onChange={(e) => change({ pattern: e.currentTarget.value })} error={at("config.pattern")} spellCheck={false} classNames={{ input: "mono" }} />
                <Checkbox label="On cards or tokens with a PIN: they count as two factors" checked={c.mfa ?? false} onChange={(e) => change({ mfa: e.currentTarget.checked })} />
              </Stack>
            </Fieldset>
            <TextInput label="Address of the revocation list" description="Fetched hourly. Empty: load it by hand." placeholder="http://pki.corp.example/staff.crl" value={c.crl_url ?? ""} onChange={(e) => change({ crl_url: e.currentTarget.value })} error={at("config.crl_url")} spellCheck={false} />
            <Checkbox label="Refuse everybody while there is no current revocation list" checked={c.require_crl ?? false} onChange={(e) => change({ require_crl: e.currentTarget.checked })} />
            <Checkbox label="Sign people in with it" checked={v.enabled} onChange={(e) => set({ enabled: e.currentTarget.checked })} />
          </>
        );
      }}
    </FormModal>
  );
}
