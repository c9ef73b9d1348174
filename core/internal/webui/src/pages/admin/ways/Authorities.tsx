import { Text } from "@mantine/core";
import { IconCertificate } from "@tabler/icons-react";
import { api, ask } from "~/api/client";
import { StateBadge } from "~/ui/StateBadge";
import { Ago, Time } from "~/ui/Time";
import { AuthorityForm } from "./AuthorityForm";
import { ListForm } from "./ListForm";
import { Ways } from "./Ways";
import { type Authority, fieldWords, listState, tag } from "./words";

const one = (a: Authority) => ({ path: { id: a.id }, header: tag(a.version) });

// Authorities lists whose client certificates sign people in.
export function Authorities() {
  return (
    <Ways<Authority>
      title="Client certificates" hint="Authorities whose certificates or cards sign people in. The port for it is open only while one is on." label="Authorities for client certificates" add="Trust an authority"
      empty={{ icon: IconCertificate, title: "No authorities yet", text: "Trust one to let people in with the certificates it gave them." }}
      topic="certificate_anchor"
      list={(signal) => ask(api.GET("/certificate-anchors", { signal }))}
      turn={(a) => ask(api.PUT("/certificate-anchors/{id}", { params: one(a), body: { name: a.name, enabled: !a.enabled, bundle_pem: a.bundle_pem, config: a.config } }))}
      remove={(a) => ask(api.DELETE("/certificate-anchors/{id}", { params: one(a) }))}
      removing={{ title: "Trust this authority no longer?", text: "Its certificates sign nobody in any more." }}
      columns={[
        { head: "Authority", cell: (a) => <><b>{a.name}</b>{a.subjects?.map((s) => <Text key={s} size="xs" c="dimmed">{s}</Text>)}<Text size="xs" c="dimmed">until <Time at={a.not_after} /></Text></> },
        { head: "State", cell: (a) => <><StateBadge state={a.enabled ? "active" : "disabled"} label={a.enabled ? "On" : "Off"} />{a.config.mfa && <Text size="xs" c="dimmed">two factors</Text>}</> },
        { head: "Names the user", cell: (a) => <>{fieldWords[a.config.field]}{a.config.pattern && <Text size="xs" c="dimmed" className="mono">{a.config.pattern}</Text>}<Text size="xs" c="dimmed">is the {a.config.lookup === "email" ? "mail address" : "user name"}</Text></> },
        { head: "Revocation list", cell: (a) => <Lists authority={a} /> },
      ]}
      more={{ what: "list", label: "Load list" }}
      dialogs={(act, _, close) => (
        <>
          <AuthorityForm opened={act?.what === "add" || act?.what === "edit"} close={close} authority={act?.way} />
          <ListForm opened={act?.what === "list"} close={close} authority={act?.way} />
        </>
      )}
    />
  );
}

function Lists({ authority: a }: { authority: Authority }) {
  const crl = listState(a, Date.now());
  return (
    <>
      <StateBadge state={crl.tone} tone={crl.tone} label={crl.text} />
      {crl.until && <Text size="xs" c="dimmed">current until <Time at={crl.until} /></Text>}
      {a.crl_at && <Text size="xs" c="dimmed">loaded <Ago at={a.crl_at} />{a.config.crl_url ? ", fetched hourly" : ""}</Text>}
    </>
  );
}
