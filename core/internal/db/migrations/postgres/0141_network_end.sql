-- +goose Up
-- Why a network session ended and what its user was told, written with its
-- end: the record of its connection is written later.
alter table network_sessions add column end_reason text not null default '';
alter table network_sessions add column end_text text not null default '';
