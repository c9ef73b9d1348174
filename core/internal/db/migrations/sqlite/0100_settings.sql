-- +goose Up
-- Settings that differ from their default; value is JSON.
create table settings (
  name text primary key,
  value text not null,
  changed_at integer not null,
  changed_by text not null
) strict;
-- The version of the settings as a whole, for If-Match.
create table settings_version (
  one integer primary key,
  version integer not null
) strict;
insert into settings_version (one, version) values (1, 1);
