-- +goose Up
alter table sites add column group_id text not null default 'default';
create index sites_group on sites (group_id, name);
alter table targets add column group_id text not null default 'default';
create index targets_group on targets (group_id, name);

-- Where the target was when the connection was opened.
alter table connections add column group_id text not null default 'default';
create index connections_group on connections (group_id, requested_at);

-- Every group has an authority of its own for its targets.
alter table sshca_keys add column group_id text not null default 'default';
alter table sshca_keys drop constraint sshca_keys_generation;
alter table sshca_keys add constraint sshca_keys_generation unique (group_id, purpose, generation);
