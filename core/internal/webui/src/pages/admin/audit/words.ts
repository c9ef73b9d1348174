import type { Schemas } from "~/api/client";

type Entry = Schemas["AuditEntry"];

// What an event says when who and what are put in: {a} acted on {o}.
const texts: Record<string, string> = {
  "system.started": "{o} started", "system.stopped": "{o} stopped", "audit.exported": "{a} exported the audit log", "audit.verified": "{a} verified the audit log",
  "audit.pruned": "Old audit events were removed", "audit.broken": "The audit chain is broken", "system.kek_rotated": "The key-encryption key was changed",
  "user.created": "{a} created user {o}", "user.changed": "{a} changed user {o}", "user.disabled": "{a} disabled {o}", "user.enabled": "{a} enabled {o}", "user.locked": "{a} locked {o}", "user.unlocked": "{a} unlocked {o}",
  "user.password_set": "{a} set the password of {o}", "user.totp_enrolled": "{o} set up a second factor", "user.totp_removed": "{a} removed the second factor of {o}", "user.erased": "{a} erased a user",
  "user.key_added": "{a} added an SSH key for {o}", "user.key_removed": "{a} removed an SSH key of {o}", "user.sessions_revoked": "{a} signed {o} out everywhere", "user.bootstrapped": "Administrator {o} was made on the machine",
  "role.created": "{a} created role {o}", "role.changed": "{a} changed role {o}", "role.deleted": "{a} deleted role {o}",
  "role.member_added": "{a} made {o} a member of {role_name}", "role.member_changed": "{a} changed the membership of {o} in {role_name}", "role.member_removed": "{a} took {o} out of {role_name}",
  "login.succeeded": "{a} signed in", "login.session_opened": "{a} opened a session", "login.failed": "A sign-in as {o} failed", "login.limited": "Sign-ins as {o} were turned away unseen", "login.logout": "{a} signed out", "login.expired": "A session of {a} ended",
  "login.code_needed": "A second factor of {o} was asked for", "login.replayed": "A second-factor code of {o} was used twice", "login.paused": "Password sign-ins of {o} were paused",
  "token.created": "{a} created API token {o}", "token.revoked": "{a} revoked API token {o}", "token.client_created": "{a} created API client {o}", "token.client_granted": "API client {a} took a token",
  "target.created": "{a} created target {o}", "target.changed": "{a} changed target {o}", "target.deleted": "{a} deleted target {o}", "target.imported": "{a} imported targets: {created} made, {updated} changed", "target.host_registered": "Host {o} registered itself",
  "account.created": "{a} added account {o}", "account.changed": "{a} changed account {o}", "account.deleted": "{a} removed account {o}",
  "grant.created": "{a} made a grant", "grant.changed": "{a} changed a grant", "grant.deleted": "{a} deleted a grant", "site.created": "{a} created site {o}", "site.deleted": "{a} deleted site {o}",
  "hostkey.accepted": "{a} accepted a host key of {o}", "hostkey.changed": "The host key of {o} changed", "hostkey.rejected": "{a} rejected a host key of {o}",
  "edge.enrolled": "Node {o} was enrolled", "edge.changed": "{a} changed node {o}", "edge.revoked": "{a} revoked node {o}", "edge.deleted": "{a} deleted node {o}", "edge.connected": "Node {o} connected over {transport}", "edge.disconnected": "Node {o} disconnected: {reason}",
  "edge.refused": "Node {o} was refused", "edge.dial_refused": "Node {a} refused to dial {o}", "edge.renewed": "Node {o} renewed its certificate", "edge.identity_copied": "The identity of node {o} is in use twice", "edge.moved": "Node {o} moved to another machine", "edge.drained": "{a} drained node {o}", "edge.clock_skew": "The clock of node {o} is off by {skew_s} s",
  "enrolment.created": "{a} made an enrolment token for {site}", "enrolment.revoked": "{a} revoked an enrolment token", "enrolment.refused": "An enrolment was refused: {reason}",
  "secret.created": "{a} stored secret {o}", "secret.changed": "{a} changed secret {o}", "secret.written": "{a} stored a new value of secret {o}", "secret.deleted": "{a} deleted secret {o}", "secret.used": "Secret {o} was used", "secret.revealed": "{a} read secret {o}", "secret.refused": "{a} was refused secret {o}",
  "connection.requested": "{a} asks for {o}", "connection.denied": "{a} was denied {o}", "connection.established": "{a} is connected to {o}", "connection.failed": "{a} could not connect to {o}", "connection.closed": "The connection of {a} to {o} ended", "connection.terminated": "{a} ended a connection",
  "recording.started": "A session of {a} is recorded", "recording.completed": "A recording was completed", "recording.played": "{a} played a recording", "recording.exported": "{a} exported a recording", "recording.damaged": "A recording is damaged", "recording.expired": "A recording reached its end",
  "ca.issued": "A certificate was issued: {o}", "ca.created": "An SSH authority was made: {o}", "ca.renewed": "{a} made a new key of an SSH authority", "ca.activated": "{a} made a key of an SSH authority active", "ca.revoked": "{a} revoked a key of an SSH authority", "ca.cert_revoked": "{a} revoked a certificate",
  "setting.changed": "{a} changed {o} from {old} to {new}",
};

// sentence says in words what happened; a type this console does not know is
// said by its name.
export function sentence(e: Entry): string {
  const actor = e.actor.name || (e.actor.kind === "anonymous" ? "Somebody" : e.actor.kind === "system" ? "Core" : e.actor.id || e.actor.kind);
  const object = e.object.name || e.object.id || e.object.kind;
  const text = texts[e.type];
  if (!text) return `${actor}: ${e.type.replace(".", " ").replaceAll("_", " ")}${object ? ` ${object}` : ""}`;
  return text.replace(/\{(\w+)\}/g, (_, key: string) => (key === "a" ? actor : key === "o" ? object : (e.fields?.[key] ?? "?")));
}
