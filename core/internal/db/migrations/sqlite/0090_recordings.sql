-- +goose Up
-- One row per recording; the bytes are in files named after the id. sealed_key
-- is the data key under the present KEK: re-wrapping it rewrites no file.
create table recordings (
  id text primary key,
  connection_id text not null,
  core_id text not null,
  status text not null,
  kind text not null,
  user_id text not null,
  user_name text not null,
  target_id text not null,
  target_name text not null,
  account text not null,
  title text not null,
  width integer not null,
  height integer not null,
  sealed_key text not null,
  started_at integer not null,
  ended_at integer not null default 0,
  duration integer not null default 0,
  size integer not null default 0,
  blocks integer not null default 0,
  sha256 text not null default '',
  indexed integer not null default 0,
  problem text not null default '',
  verified_at integer not null default 0,
  expires_at integer not null
) strict;
create index recordings_started on recordings (started_at desc, id desc);
create index recordings_connection on recordings (connection_id);
create index recordings_user on recordings (user_id, started_at desc);
create index recordings_expiry on recordings (expires_at) where status <> 'expired';
create index recordings_verify on recordings (verified_at) where status = 'complete';
create index recordings_live on recordings (core_id) where status = 'recording';

-- Roles whose members may see one recording.
create table recording_roles (
  recording_id text not null references recordings (id),
  role_id text not null,
  granted_by text not null,
  granted_at integer not null,
  primary key (recording_id, role_id)
) strict;

-- Stored copies of transferred files, encrypted like the recording.
create table recording_files (
  id text primary key,
  recording_id text not null references recordings (id),
  direction text not null,
  path text not null,
  size integer not null,
  sha256 text not null,
  status text not null,
  sealed_key text not null,
  stored_at integer not null
) strict;
create index recording_files_recording on recording_files (recording_id);

-- Tickets for the second step of a file download; only their hash is kept.
create table recording_tickets (
  hash text primary key,
  file_id text not null references recording_files (id),
  user_id text not null,
  expires_at integer not null
) strict;
