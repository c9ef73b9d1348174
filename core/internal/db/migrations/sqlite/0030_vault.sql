-- +goose Up
-- Keys of the vault, each wrapped under the key-encryption key named here.
create table vault_keys (
  name text primary key,
  kek_id text not null,
  wrapped blob not null,
  created_at integer not null
) strict;

-- Which key-encryption key wraps new keys: one row.
create table vault_state (
  id integer primary key constraint vault_state_single check (id = 1),
  kek_id text not null,
  changed_at integer not null
) strict;

-- Named secrets; owner_id is empty for shared ones.
create table vault_secrets (
  id text primary key,
  name text not null,
  owner_id text not null,
  kind text not null,
  comment text not null,
  read_roles text not null,
  write_roles text not null,
  current integer not null,
  version integer not null,
  created_at integer not null,
  updated_at integer not null,
  constraint vault_secrets_name unique (owner_id, name)
) strict;

create table vault_values (
  id text primary key,
  secret_id text not null constraint vault_values_secret references vault_secrets (id) on delete cascade,
  version integer not null,
  sealed blob not null,
  created_at integer not null,
  created_by text not null,
  constraint vault_values_version unique (secret_id, version)
) strict;
