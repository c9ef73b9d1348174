-- +goose Up
-- Generations of the authorities' keys; the private key is sealed by the vault.
create table sshca_keys (
  id text primary key,
  purpose text not null,
  generation bigint not null,
  state text not null,
  public_key text not null,
  sealed bytea not null,
  created_at bigint not null,
  changed_at bigint not null,
  constraint sshca_keys_generation unique (purpose, generation)
);

-- Certificates that were signed, until a day after they end.
create table sshca_certs (
  serial bigint primary key,
  purpose text not null,
  ca_id text not null,
  key_id text not null,
  user_id text not null,
  principals text not null,
  valid_after bigint not null,
  valid_before bigint not null,
  revoked_at bigint not null
);
create index sshca_certs_valid_before on sshca_certs (valid_before);
create index sshca_certs_revoked on sshca_certs (revoked_at) where revoked_at > 0;

-- Algorithm rules of the installation: one row.
create table sshca_rules (
  id bigint primary key constraint sshca_rules_single check (id = 1),
  rules text not null,
  version bigint not null,
  changed_at bigint not null
);
insert into sshca_rules (id, rules, version, changed_at) values (1, '', 1, 0);
