-- +goose Up
-- Cores of this fleet; each keeps its row fresh while it runs.
create table cores (
  id text primary key,
  name text not null,
  version text not null,
  started_at bigint not null,
  seen_at bigint not null
);
