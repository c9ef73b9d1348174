-- +goose Up
-- Answers to requests with an Idempotency-Key, for ten minutes. key and request
-- are hashes; status 0 = the request is running; kept says whether header and
-- body hold the answer, which those with secrets in them do not.
create table api_replays (
  key text primary key,
  user_id text not null,
  request text not null,
  at integer not null,
  status integer not null,
  kept integer not null,
  header text not null,
  body blob not null
) strict;
create index api_replays_at on api_replays (at);
create index api_replays_user on api_replays (user_id);
