-- +goose Up
-- The edge CA: one key, its certificates in order of issue.
create table edge_ca (
  id text primary key,
  certificate blob not null,
  sealed_key blob not null,
  not_after integer not null,
  created_at integer not null
) strict;

-- Enrolment tokens. Only a hash of the secret is kept.
create table edge_tokens (
  id text primary key,
  kind text not null,
  site text not null,
  labels text not null,
  rules text not null,
  comment text not null,
  secret_hash blob not null,
  max_uses integer not null,
  uses integer not null,
  allow_repeat integer not null,
  expires_at integer not null,
  revoked_at integer not null,
  created_at integer not null,
  created_by text not null,
  version integer not null
) strict;

-- Edge nodes. key_hash is the SHA-256 of the SubjectPublicKeyInfo proven at
-- enrolment or at the last renewal; host is the fingerprint of the place the
-- identity lives in.
create table edges (
  id text primary key,
  kind text not null,
  name text not null,
  site text not null,
  labels text not null,
  rules text not null,
  cordoned integer not null,
  revoked_at integer not null,
  token_id text not null,
  key_hash blob not null,
  serial text not null,
  cert_not_after integer not null,
  host text not null,
  build text not null,
  address text not null,
  seen_at integer not null,
  last_error text not null,
  created_at integer not null,
  version integer not null
) strict;
create unique index edges_name on edges (name);
create unique index edges_key on edges (key_hash);
create index edges_site on edges (site, kind);

-- Certificates issued to nodes; rows go when the certificate has ended. The
-- revocation list is made from those with revoked_at.
create table edge_certs (
  serial text primary key,
  edge_id text not null,
  not_after integer not null,
  revoked_at integer not null
) strict;
create index edge_certs_edge on edge_certs (edge_id);

-- Hosts that registered through an extender.
create table edge_hosts (
  site text not null,
  machine_id text not null,
  target_id text not null,
  token_id text not null,
  digest text not null,
  registered_at integer not null,
  primary key (site, machine_id)
) strict;
