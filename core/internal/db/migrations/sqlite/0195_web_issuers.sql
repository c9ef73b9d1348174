-- +goose Up
-- Certificates with which webproxies issue those that browsers of web sessions
-- see; for the revocation list of their root. serial is hexadecimal, names are
-- what it may issue for, empty for everything.
create table web_issuers (
  serial text primary key,
  authority_id text not null references web_authorities (id) on delete cascade,
  node_id text not null,
  names text not null,
  not_after integer not null,
  issued_at integer not null,
  revoked_at integer not null,
  reason integer not null
) strict;
create index web_issuers_authority on web_issuers (authority_id, not_after);
create index web_issuers_node on web_issuers (node_id) where revoked_at = 0;
