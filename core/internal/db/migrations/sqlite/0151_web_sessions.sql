-- +goose Up
-- Roots that the browsers of web sessions trust; the newest issues.
create table web_authorities (
  id text primary key,
  certificate blob not null,
  sealed_key blob not null,
  not_after integer not null,
  created_at integer not null
) strict;

-- Web sessions: what a later run of core needs to take a live one over.
-- sealed_key proves to the webproxy that a connection is the session's.
create table web_sessions (
  id text primary key references connections (id) on delete cascade,
  core_id text not null,
  state text not null,
  user_id text not null,
  user_name text not null,
  target_id text not null,
  target_name text not null,
  account text not null,
  carrier_id text not null,
  carrier_name text not null,
  webproxy_id text not null,
  webproxy_name text not null,
  sealed_key blob not null,
  recorded integer not null,
  recording_id text not null,
  width integer not null,
  height integer not null,
  time_zone text not null,
  warm integer not null,
  extended integer not null,
  opened_at integer not null,
  ended_at integer not null,
  end_reason text not null,
  end_text text not null
) strict;
create index web_sessions_live on web_sessions (core_id) where ended_at = 0;
create index web_sessions_user on web_sessions (user_id, opened_at desc);
create index web_sessions_opened on web_sessions (opened_at desc, id desc);

-- What sessions of a learning web target were refused, as rules that would
-- allow it. digest is of the rule.
create table web_proposals (
  target_id text not null references targets (id) on delete cascade,
  digest text not null,
  rule text not null,
  count integer not null,
  first_at integer not null,
  last_at integer not null,
  example_url text not null,
  primary key (target_id, digest)
) strict;
