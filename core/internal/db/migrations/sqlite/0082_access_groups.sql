-- +goose Up
alter table sites add column group_id text not null default 'default';
create index sites_group on sites (group_id, name);
alter table targets add column group_id text not null default 'default';
create index targets_group on targets (group_id, name);

-- Where the target was when the connection was opened.
alter table connections add column group_id text not null default 'default';
create index connections_group on connections (group_id, requested_at);

-- Every group has an authority of its own for its targets.
create table sshca_keys_new (
  id text primary key,
  purpose text not null,
  generation integer not null,
  state text not null,
  public_key text not null,
  sealed blob not null,
  created_at integer not null,
  changed_at integer not null,
  group_id text not null default 'default',
  constraint sshca_keys_generation unique (group_id, purpose, generation)
) strict;
insert into sshca_keys_new (id, purpose, generation, state, public_key, sealed, created_at, changed_at)
select id, purpose, generation, state, public_key, sealed, created_at, changed_at from sshca_keys;
drop table sshca_keys;
alter table sshca_keys_new rename to sshca_keys;
