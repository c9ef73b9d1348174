-- +goose Up
-- What a network target opens, in JSON; empty for other kinds.
alter table targets add column network text not null default '';

-- What an administrator says about an edge node of kind router: pools are the
-- client addresses whose traffic it forwards, sources its own addresses.
-- Both are JSON lists of prefixes. type and leased are what it said last.
create table router_settings (
  edge_id text primary key,
  pools text not null,
  sources text not null,
  type text not null,
  leased integer not null,
  changed_at integer not null,
  version integer not null
) strict;

-- Network sessions. rules is what routers enforce, in JSON; selectors names
-- what they match, so that sessions of one target are compared once. A row in
-- state opening, open or ending counts for overlaps; routers are those that
-- may still hold its rules.
create table network_sessions (
  id text primary key references connections (id) on delete cascade,
  core_id text not null,
  state text not null,
  user_id text not null,
  user_name text not null,
  target_id text not null,
  target_name text not null,
  definition text not null,
  client text not null,
  exclusive integer not null,
  selectors text not null,
  rules text not null,
  site text not null,
  relays text not null,
  provider text not null,
  static_config text not null,
  routers text not null,
  flows text not null,
  opened_at integer not null,
  presence_at integer not null,
  ended_at integer not null
) strict;
create index network_sessions_live on network_sessions (client) where state <> 'ended';
create index network_sessions_user on network_sessions (user_id, opened_at desc);
create index network_sessions_opened on network_sessions (opened_at desc, id desc);
