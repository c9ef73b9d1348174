-- +goose Up
-- Where the target was when the recording was made.
alter table recordings add column group_id text not null default 'default';
create index recordings_group on recordings (group_id, started_at);
