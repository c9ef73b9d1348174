-- +goose Up
-- A lock freezes the user's input of a live connection. What it says about new
-- connections (lock_block: none, target, user) outlives the connection, until
-- somebody unlocks it.
alter table connections add column lockable boolean not null default false;
alter table connections add column locked_at bigint not null default 0;
alter table connections add column locked_by_id text not null default '';
alter table connections add column locked_by_name text not null default '';
alter table connections add column lock_text text not null default '';
alter table connections add column lock_block text not null default '';
create index connections_locked on connections (user_id) where locked_at > 0;

-- Who watches a live connection now, on whatever core.
create table connection_watchers (
  id text primary key,
  connection_id text not null references connections (id) on delete cascade,
  user_id text not null,
  user_name text not null,
  core_id text not null,
  since bigint not null
);
create index connection_watchers_connection on connection_watchers (connection_id);
create index connection_watchers_core on connection_watchers (core_id);
