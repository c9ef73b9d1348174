-- +goose Up
-- What a web target is, in JSON; empty for other kinds.
alter table targets add column web text not null default '';
