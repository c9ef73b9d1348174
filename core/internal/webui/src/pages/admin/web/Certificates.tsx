import { Alert, Checkbox, Collapse, Select, SimpleGrid, Stack, TagsInput, Textarea, TextInput, UnstyledButton } from "@mantine/core";
import { IconAlertTriangle } from "@tabler/icons-react";
import { useState } from "react";
import { Panel } from "../parts/Panel";
import type { Part } from "./Editor";
import { usesCredential } from "./recipe";
import { recipeOf } from "./draft";

// Certificates says how servers are believed.
export function Certificates({ d, set, at }: Part) {
  const t = d.policy.tls ?? {};
  const change = (c: Partial<typeof t>) => set({ policy: { ...d.policy, tls: { ...t, ...c } } });
  const [more, setMore] = useState(Boolean(t.min || t.max || t.legacy || t.server_name));
  const versions = [{ value: "", label: "Default" }, ...["1.0", "1.1", "1.2", "1.3"].map((v) => ({ value: v, label: `TLS ${v}` }))];
  const revocations = [
    { value: "", label: "Not asked for" },
    { value: "soft", label: "Asked for; believed without an answer" },
    { value: "hard", label: "Asked for; refused without an answer" },
  ];
  return (
    <Panel title="Certificates" hint="The webproxy checks who answers before anything is sent.">
      <Stack gap="md">
        <Textarea label="Authorities" description="Certificates in PEM that are believed besides the system's." placeholder="-----BEGIN CERTIFICATE-----" value={t.anchors ?? ""} onChange={(e) => change({ anchors: e.currentTarget.value || undefined })} error={at("web.policy.tls.anchors")} autosize minRows={2} maxRows={10} classNames={{ input: "mono" }} spellCheck={false} />
        {t.anchors && <Checkbox label="Believe only these" checked={t.only ?? false} onChange={(e) => change({ only: e.currentTarget.checked })} />}
        <Checkbox label="Take any certificate of the application" checked={t.unchecked ?? false} onChange={(e) => change({ unchecked: e.currentTarget.checked })} />
        {t.unchecked && (
          <Alert variant="light" color="orange" icon={<IconAlertTriangle size={20} />} p="sm">
            Whoever stands between webproxy and application can pretend to be it. {usesCredential(recipeOf(d)) ? "The credential is not put in then, unless the recipe says insecure (Advanced)." : ""} Naming its authority above is better.
          </Alert>
        )}
        <SimpleGrid cols={{ base: 1, sm: 2 }} spacing="md">
          <Select label="Revoked certificates" description="Whether a certificate's authority is asked if it took it back." data={revocations} value={t.revocation ?? ""} onChange={(v) => change({ revocation: v || undefined })} allowDeselect={false} error={at("web.policy.tls.revocation")} />
          {t.revocation && <TagsInput label="Ask these through the site" description="Internal OCSP services and hosts of revocation lists." placeholder="pki.example.org" value={t.responders ?? []} onChange={(list) => change({ responders: list.length ? list : undefined })} error={at("web.policy.tls.responders")} />}
        </SimpleGrid>
        <UnstyledButton fz="sm" c="var(--accent)" onClick={() => setMore(!more)} aria-expanded={more}>{more ? "Fewer settings" : "Old servers, another name"}</UnstyledButton>
        <Collapse expanded={more}>
          <SimpleGrid cols={{ base: 1, sm: 3 }} spacing="md">
            <Select label="At least" data={versions} value={t.min ?? ""} onChange={(v) => change({ min: v || undefined })} allowDeselect={false} error={at("web.policy.tls.min")} />
            <Select label="At most" data={versions} value={t.max ?? ""} onChange={(v) => change({ max: v || undefined })} allowDeselect={false} error={at("web.policy.tls.max")} />
            <TextInput label="Name in the certificate" description="If it is not the host's." value={t.server_name ?? ""} onChange={(e) => change({ server_name: e.currentTarget.value.trim() || undefined })} error={at("web.policy.tls.server_name")} spellCheck={false} />
          </SimpleGrid>
          <Checkbox mt="sm" label="Permit old ciphers" description="For servers that know no others; they can be broken." checked={t.legacy ?? false} onChange={(e) => change({ legacy: e.currentTarget.checked })} />
        </Collapse>
      </Stack>
    </Panel>
  );
}
