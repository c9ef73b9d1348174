-- +goose Up
-- A listener open for one connection and one client address.
create table port_sessions (
  id text primary key,
  connection_id text not null references connections (id) on delete cascade,
  core_id text not null,
  user_id text not null,
  user_name text not null,
  target_id text not null,
  target_name text not null,
  account text not null,
  address text not null,
  port integer not null,
  client text not null,
  opened_at integer not null,
  expires_at integer not null,
  closed_at integer not null default 0
) strict;
create index port_sessions_open on port_sessions (core_id) where closed_at = 0;
create index port_sessions_user on port_sessions (user_id, opened_at desc);
