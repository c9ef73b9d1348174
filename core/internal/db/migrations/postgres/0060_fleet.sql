-- +goose Up
-- The edge CA: one key, its certificates in order of issue.
create table edge_ca (
  id text primary key,
  certificate bytea not null,
  sealed_key bytea not null,
  not_after bigint not null,
  created_at bigint not null
);

-- Enrolment tokens. Only a hash of the secret is kept.
create table edge_tokens (
  id text primary key,
  kind text not null,
  site text not null,
  labels text not null,
  rules text not null,
  comment text not null,
  secret_hash bytea not null,
  max_uses integer not null,
  uses integer not null,
  allow_repeat boolean not null,
  expires_at bigint not null,
  revoked_at bigint not null,
  created_at bigint not null,
  created_by text not null,
  version bigint not null
);

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
  cordoned boolean not null,
  revoked_at bigint not null,
  token_id text not null,
  key_hash bytea not null,
  serial text not null,
  cert_not_after bigint not null,
  host text not null,
  build text not null,
  address text not null,
  seen_at bigint not null,
  last_error text not null,
  created_at bigint not null,
  version bigint not null
);
create unique index edges_name on edges (name);
create unique index edges_key on edges (key_hash);
create index edges_site on edges (site, kind);

-- Certificates issued to nodes; rows go when the certificate has ended. The
-- revocation list is made from those with revoked_at.
create table edge_certs (
  serial text primary key,
  edge_id text not null,
  not_after bigint not null,
  revoked_at bigint not null
);
create index edge_certs_edge on edge_certs (edge_id);

-- Hosts that registered through an extender.
create table edge_hosts (
  site text not null,
  machine_id text not null,
  target_id text not null,
  token_id text not null,
  digest text not null,
  registered_at bigint not null,
  primary key (site, machine_id)
);
