-- +goose Up
-- WebAuthn credentials. data is the credential record (public key, counter,
-- flags) in JSON, sealed for its row; credential is its ID in base64url.
create table passkeys (
  id text primary key,
  user_id text not null references users (id) on delete cascade,
  credential text not null,
  name text not null,
  data text not null,
  created_at bigint not null,
  last_used bigint not null,
  cloned_at bigint not null,
  constraint passkeys_credential_key unique (credential)
);
create index passkeys_user on passkeys (user_id, created_at);

-- Hashes of what may be used once: answered challenges, hand-over tickets.
create table spent_proofs (
  hash text primary key,
  expires_at bigint not null
);
create index spent_proofs_expires on spent_proofs (expires_at);

-- The code that makes the first administrator; one row. done_at is set for good.
create table setup_code (
  id text primary key,
  hash text not null,
  created_at bigint not null,
  expires_at bigint not null,
  tries integer not null,
  done_at bigint not null
);
insert into setup_code (id, hash, created_at, expires_at, tries, done_at) values ('first', '', 0, 0, 0, 0);

-- OpenID Connect providers. config is JSON, secret is sealed for its row.
create table sso_providers (
  id text primary key,
  name text not null,
  config text not null,
  secret text not null,
  enabled boolean not null,
  created_at bigint not null,
  version bigint not null,
  constraint sso_providers_name_key unique (name)
);

-- Who a subject of a provider is here.
create table sso_identities (
  id text primary key,
  provider_id text not null references sso_providers (id) on delete cascade,
  subject text not null,
  user_id text not null references users (id) on delete cascade,
  created_at bigint not null,
  created_by text not null,
  last_used bigint not null,
  constraint sso_identities_subject_key unique (provider_id, subject)
);
create index sso_identities_user on sso_identities (user_id);

-- Authorities whose client certificates log people in.
create table certificate_anchors (
  id text primary key,
  name text not null,
  config text not null,
  bundle text not null,
  crl text not null,
  crl_at bigint not null,
  enabled boolean not null,
  created_at bigint not null,
  version bigint not null,
  constraint certificate_anchors_name_key unique (name)
);

-- Failed logins that are not forgiven yet, by hashed bucket, for all cores.
create table login_failures (
  bucket text primary key,
  failures double precision not null,
  at bigint not null
);
create index login_failures_at on login_failures (at);

-- The provider a session came by, for logging out there, too.
alter table sessions add column provider text not null default '';
