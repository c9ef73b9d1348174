import { Text } from "@mantine/core";
import { api, ask } from "~/api/client";
import { FormModal } from "../parts/FormModal";
import { PemInput } from "./PemInput";
import type { Authority } from "./words";

// ListForm loads revocation lists; those loaded before give way to them.
export function ListForm({ opened, close, authority }: { opened: boolean; close: () => void; authority?: Authority }) {
  return (
    <FormModal
      opened={opened} close={close} size="lg" title={`Revocation list of ${authority?.name ?? ""}`} action="Load" saved="The revocation list holds from now on." topics={["certificate_anchor"]} initial={() => ({ crl_pem: "" })}
      save={async (v) => authority && ask(api.PUT("/certificate-anchors/{id}/crl", { params: { path: { id: authority.id } }, body: v }))}
    >
      {({ v, set, at }) => (
        <>
          <PemInput label="Lists" description="One or more, signed by certificates of the authority." value={v.crl_pem} onChange={(crl_pem) => set({ crl_pem })} error={at("crl_pem")} placeholder="-----BEGIN X509 CRL-----" />
          <Text size="sm" c="dimmed">It takes the place of the one there is. Past its next update it refuses everybody it speaks for.</Text>
        </>
      )}
    </FormModal>
  );
}
