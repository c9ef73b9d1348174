import { Text } from "@mantine/core";
import { IconFingerprint } from "@tabler/icons-react";
import { api, ask } from "~/api/client";
import { CopyText } from "~/ui/CopyText";
import { StateBadge } from "~/ui/StateBadge";
import { ProviderForm } from "./ProviderForm";
import { ProviderTest } from "./ProviderTest";
import { Ways } from "./Ways";
import { linkWords, type Provider, tag } from "./words";

const one = (p: Provider) => ({ path: { id: p.id }, header: tag(p.version) });

// Providers lists the OpenID Connect providers people come in by.
export function Providers() {
  return (
    <Ways<Provider>
      title="Single sign-on" hint="OpenID Connect providers. Each has its button on the sign-in page." label="Single sign-on providers" add="Add a provider"
      empty={{ icon: IconFingerprint, title: "No providers yet", text: "People sign in with the passwords and passkeys they have here." }}
      topic="sso_provider" topics={["user"]}
      list={(signal) => ask(api.GET("/sso-providers", { signal }))}
      turn={(p) => ask(api.PUT("/sso-providers/{id}", { params: one(p), body: { name: p.name, enabled: !p.enabled, config: p.config } }))}
      remove={(p) => ask(api.DELETE("/sso-providers/{id}", { params: one(p) }))}
      removing={{ title: "Delete this provider?", text: "Every link of a user to it goes, too. Who has neither password nor passkey here cannot sign in any more." }}
      columns={[
        { head: "Provider", cell: (p) => <><b>{p.config.label}</b><Text size="xs" c="dimmed">{p.name}, {p.config.issuer}</Text></> },
        { head: "State", cell: (p) => <><StateBadge state={p.enabled ? "active" : "disabled"} label={p.enabled ? "On" : "Off"} /><Text size="xs" c="dimmed">{p.has_secret ? "client secret kept" : "public client"}</Text></> },
        { head: "New people", cell: (p) => <>{p.config.create ? "Get an account" : "Need an account"}<Text size="xs" c="dimmed">Linked: {linkWords[p.config.link ?? "none"].toLowerCase()}</Text></> },
        { head: "To enter at the provider", cell: (p) => <Addresses provider={p} /> },
      ]}
      more={{ what: "test", label: "Test" }}
      dialogs={(act, open, close) => (
        <>
          <ProviderForm opened={act?.what === "add" || act?.what === "edit"} close={close} provider={act?.way} done={(made) => open({ what: "test", way: made })} />
          <ProviderTest opened={act?.what === "test"} close={close} provider={act?.way} />
        </>
      )}
    />
  );
}

function Addresses({ provider: p }: { provider: Provider }) {
  return (
    <>
      <Text size="xs" c="dimmed">Redirect URI</Text>
      <CopyText text={p.callback} label="Copy the redirect URI" />
      <Text size="xs" c="dimmed" mt={4}>Back-channel logout URI: sessions that end there end here</Text>
      <CopyText text={p.logout_uri} label="Copy the back-channel logout URI" />
    </>
  );
}
