-- +goose Up
-- People and API clients. locked is set by an administrator and suspends
-- everything; password_locked_until is set by failed logins and stops only
-- password logins. epoch rises on "sign out everywhere".
create table users (
  id text primary key,
  kind text not null,
  name text not null,
  display_name text not null,
  email text not null,
  disabled integer not null,
  locked integer not null,
  password_hash text not null,
  password_changed_at integer not null,
  password_failures integer not null,
  password_locked_until integer not null,
  totp_secret text not null,
  totp_pending text not null,
  totp_last_step integer not null,
  epoch integer not null,
  created_at integer not null,
  last_login integer not null,
  erased_at integer not null,
  version integer not null,
  constraint users_name_key unique (name)
) strict;
create index users_kind_name on users (kind, name);

-- Single-use codes that replace a lost second factor, hashed.
create table recovery_codes (
  user_id text not null references users (id) on delete cascade,
  hash text not null,
  primary key (user_id, hash)
) strict;

-- SSH public keys people log in with.
create table user_keys (
  id text primary key,
  user_id text not null references users (id) on delete cascade,
  fingerprint text not null,
  algorithm text not null,
  public_key text not null,
  comment text not null,
  created_at integer not null,
  last_used integer not null,
  constraint user_keys_fingerprint_key unique (user_id, fingerprint)
) strict;

-- Bearer tokens, hashed: API tokens of people (api) and access tokens of API
-- clients (oauth).
create table tokens (
  id text primary key,
  user_id text not null references users (id) on delete cascade,
  kind text not null,
  name text not null,
  hash text not null,
  created_at integer not null,
  expires_at integer not null,
  last_used integer not null,
  last_source text not null,
  revoked_at integer not null,
  constraint tokens_hash_key unique (hash)
) strict;
create index tokens_user on tokens (user_id, created_at);
create index tokens_expires on tokens (expires_at);

-- Console and command-line sessions, server side; the cookie is stored hashed.
create table sessions (
  id text primary key,
  user_id text not null references users (id) on delete cascade,
  hash text not null,
  kind text not null,
  methods text not null,
  mfa integer not null,
  source text not null,
  refused_source text not null,
  agent text not null,
  created_at integer not null,
  seen_at integer not null,
  expires_at integer not null,
  revoked_at integer not null,
  constraint sessions_hash_key unique (hash)
) strict;
create index sessions_user on sessions (user_id, created_at);
create index sessions_expires on sessions (expires_at);

-- Secrets of API clients, hashed; the client itself is a user of kind client.
create table api_clients (
  user_id text primary key references users (id) on delete cascade,
  secret_hash text not null,
  comment text not null,
  created_by text not null,
  secret_set_at integer not null
) strict;

create table roles (
  id text primary key,
  name text not null,
  comment text not null,
  permissions text not null,
  builtin integer not null,
  created_at integer not null,
  version integer not null,
  constraint roles_name_key unique (name)
) strict;

-- A user's place in a role. time_window is an access.Window in JSON, '{}' = always;
-- sources a JSON list of prefixes, '[]' = from anywhere.
create table memberships (
  role_id text not null references roles (id) on delete cascade,
  user_id text not null references users (id) on delete cascade,
  time_window text not null,
  sources text not null,
  first_use integer not null,
  created_at integer not null,
  created_by text not null,
  version integer not null,
  primary key (role_id, user_id)
) strict;
create index memberships_user on memberships (user_id);

insert into roles (id, name, comment, permissions, builtin, created_at, version)
values ('rol_administrator', 'administrator', 'Built in: holds every administrative permission.', '[]', 1, 0, 1);
