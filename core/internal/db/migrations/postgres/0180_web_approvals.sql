-- +goose Up
-- Requests of web sessions that wait, or waited, for a second person. hold is
-- the request's name in its webproxy, digest is of method, URL and body.
create table web_approvals (
  id text primary key,
  session_id text not null references web_sessions (id) on delete cascade,
  hold text not null,
  user_id text not null,
  user_name text not null,
  target_id text not null,
  target_name text not null,
  account text not null,
  webproxy_id text not null,
  webproxy_name text not null,
  method text not null,
  url text not null,
  content_type text not null,
  length bigint not null,
  digest text not null,
  rule text not null,
  why text not null,
  state text not null,
  asked_at bigint not null,
  expires_at bigint not null,
  decided_at bigint not null,
  decider_id text not null,
  decider_name text not null,
  reason text not null,
  constraint web_approvals_hold unique (session_id, hold)
);
create index web_approvals_waiting on web_approvals (asked_at) where state = 'waiting';
create index web_approvals_asked on web_approvals (asked_at desc, id desc);
create index web_approvals_user on web_approvals (user_id);
