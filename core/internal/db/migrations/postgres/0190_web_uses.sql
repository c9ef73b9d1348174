-- +goose Up
-- How often each injection of a live web session was given its credential: a
-- restart of core does not grant the uses again.
create table web_credential_uses (
  session_id text not null references web_sessions (id) on delete cascade,
  injection text not null,
  uses bigint not null,
  primary key (session_id, injection)
);
