-- +goose Up
-- Partitions of what administrators look after. The group 'default' holds
-- everything that is in no other one and cannot be removed.
create table access_groups (
  id text primary key,
  name text not null,
  comment text not null,
  created_at integer not null,
  version integer not null,
  constraint access_groups_name_key unique (name)
) strict;
insert into access_groups (id, name, comment, created_at, version) values ('default', 'default', 'Everything that is in no other group.', 0, 1);

-- Certificates that targets' TLS is verified against, per group, in PEM.
create table access_group_anchors (
  id text primary key,
  group_id text not null references access_groups (id) on delete cascade,
  subject text not null,
  fingerprint text not null,
  certificate text not null,
  not_after integer not null,
  created_at integer not null,
  created_by text not null,
  constraint access_group_anchors_key unique (group_id, fingerprint)
) strict;

-- group_id is the group a role belongs to; scope says where its permissions
-- hold: '*' = everywhere, else a JSON list of groups.
alter table roles add column group_id text not null default 'default';
alter table roles add column scope text not null default '*';
create index roles_group on roles (group_id, name);

alter table vault_secrets add column group_id text not null default 'default';
create index vault_secrets_group on vault_secrets (group_id);

-- '' = of no group: only auditors of everything see it.
alter table audit_events add column group_id text not null default '';
create index audit_events_group on audit_events (group_id, seq) where group_id <> '';
