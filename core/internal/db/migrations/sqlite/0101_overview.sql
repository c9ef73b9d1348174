-- +goose Up
-- What the start page counts, answered from indexes alone.
create index connections_hourly on connections (requested_at, state);
create index recordings_status on recordings (status) where status in ('damaged', 'recording');
create index edges_certificate on edges (cert_not_after) where revoked_at = 0;
-- The end of a membership's window in RFC 3339 (UTC), null without one.
alter table memberships add column ends text generated always as (json_extract(time_window, '$.not_after')) virtual;
create index memberships_ends on memberships (ends) where ends is not null;
