-- +goose Up
-- One row per audited use of a target. Rows are never deleted by the running
-- system; counters and state are written in batches by the core that owns it.
create table connections (
  id text primary key,
  kind text not null,
  state text not null,
  user_id text not null,
  user_name text not null,
  user_roles text not null,
  user_agent text not null,
  auth_methods text not null,
  mfa boolean not null,
  session_id text not null,
  via text not null,
  remote_addr text not null,
  target_id text not null,
  target_name text not null,
  target_address text not null,
  site text not null,
  account text not null,
  reason text not null,
  role_id text not null,
  grant_id text not null,
  features integer not null,
  recorded boolean not null,
  core_id text not null,
  node_id text not null default '',
  node_name text not null default '',
  transport text not null default '',
  binding text not null default '',
  recording_id text not null default '',
  requested_at bigint not null,
  connected_at bigint not null default 0,
  ended_at bigint not null default 0,
  last_activity_at bigint not null,
  bytes_in bigint not null default 0,
  bytes_out bigint not null default 0,
  end_reason text not null default '',
  end_detail text not null default '',
  terminated_at bigint not null default 0,
  terminated_by_id text not null default '',
  terminated_by_name text not null default '',
  terminated_text text not null default ''
);
create index connections_requested on connections (requested_at desc, id desc);
create index connections_user on connections (user_id, requested_at desc);
create index connections_target on connections (target_id, requested_at desc);
create index connections_live on connections (core_id, user_id)
  where state in ('requested', 'connecting', 'connected', 'disconnecting');
create index connections_recording on connections (recording_id) where recording_id <> '';

-- What happened inside a connection: shells, commands, file operations, forwards.
create table connection_channels (
  connection_id text not null references connections (id) on delete cascade,
  seq integer not null,
  at bigint not null,
  kind text not null,
  detail text not null,
  primary key (connection_id, seq)
);

create table connection_tags (
  connection_id text not null references connections (id) on delete cascade,
  tag text not null,
  primary key (connection_id, tag)
);
create index connection_tags_tag on connection_tags (tag, connection_id);
