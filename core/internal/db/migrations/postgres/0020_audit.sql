-- +goose Up
-- What happened, chained by hash. A salt is null where the texts it covers
-- were erased.
create table audit_events (
  seq bigint primary key,
  id text not null constraint audit_events_id unique,
  at bigint not null,
  type_number bigint not null,
  type text not null,
  outcome text not null,
  actor_kind text not null,
  actor_id text not null,
  actor_via text not null,
  actor_name text not null,
  actor_source text not null,
  actor_salt bytea,
  actor_commit bytea not null,
  object_kind text not null,
  object_id text not null,
  object_name text not null,
  fields text not null,
  detail_salt bytea,
  detail_commit bytea not null,
  connection_id text not null,
  prev_hash bytea not null,
  hash bytea not null
);
create index audit_events_at on audit_events (at);
create index audit_events_type on audit_events (type, seq);
create index audit_events_actor on audit_events (actor_id, seq);
create index audit_events_object on audit_events (object_id, seq);
create index audit_events_connection on audit_events (connection_id, seq) where connection_id <> '';

-- Signed statements that the chain had this hash at this event.
create table audit_heads (
  seq bigint not null,
  kind text not null,
  hash bytea not null,
  at bigint not null,
  key_id text not null,
  signature bytea not null,
  constraint audit_heads_pk primary key (seq, kind)
);
