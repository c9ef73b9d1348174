-- +goose Up
-- Address spaces. The name is the key others refer to and never changes.
create table sites (
  id text primary key,
  name text not null,
  comment text not null,
  created_at integer not null,
  version integer not null,
  constraint sites_name_key unique (name)
) strict;

-- What can be reached. tags is a JSON list, also spread over target_tags for
-- lookups. origin tells how it came here: "", "import imp_…", "host tok_…".
create table targets (
  id text primary key,
  name text not null,
  kind text not null,
  site text constraint targets_site_fkey references sites (name),
  host text not null,
  port integer not null,
  comment text not null,
  tags text not null,
  disabled integer not null,
  machine_id text not null,
  origin text not null,
  host_key_policy text not null,
  host_key_ca text not null,
  ssh_algorithms text not null,
  created_at integer not null,
  updated_at integer not null,
  version integer not null,
  constraint targets_name_key unique (name)
) strict;
create index targets_address on targets (host, port);
create index targets_site on targets (site);
create unique index targets_machine on targets (coalesce(site, ''), machine_id) where machine_id <> '';

create table target_tags (
  tag text not null,
  target_id text not null references targets (id) on delete cascade,
  primary key (tag, target_id)
) strict;
create index target_tags_target on target_tags (target_id);

-- Logins on targets. features is the set of uses the account permits at all.
create table target_accounts (
  id text primary key,
  target_id text not null references targets (id) on delete cascade,
  name text not null,
  auth text not null,
  secret_id text not null,
  features integer not null,
  disabled integer not null,
  created_at integer not null,
  version integer not null,
  constraint target_accounts_name_key unique (target_id, name)
) strict;
create index target_accounts_secret on target_accounts (secret_id) where secret_id <> '';

create table target_host_keys (
  target_id text not null references targets (id) on delete cascade,
  fingerprint text not null,
  algorithm text not null,
  public_key text not null,
  state text not null,
  seen_at integer not null,
  decided_by text not null,
  primary key (target_id, fingerprint)
) strict;

-- Rules that open targets to roles: by target or by tag, never by both.
-- accounts and sources are JSON lists, time_window an access.Window in JSON.
create table grants (
  id text primary key,
  role_id text not null references roles (id) on delete cascade,
  target_id text references targets (id) on delete cascade,
  tag text,
  accounts text not null,
  features integer not null,
  time_window text not null,
  sources text not null,
  require_mfa integer not null,
  require_reason integer not null,
  no_recording integer not null,
  max_duration integer not null,
  idle integer not null,
  disabled integer not null,
  comment text not null,
  created_at integer not null,
  version integer not null,
  constraint grants_one_subject check ((target_id is null) <> (tag is null))
) strict;
create index grants_role on grants (role_id);
create index grants_target on grants (target_id) where target_id is not null;
create index grants_tag on grants (tag) where tag is not null;
