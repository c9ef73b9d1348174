-- +goose Up
-- Small things the console keeps for a user, such as favourites; value is JSON.
create table user_preferences (
  user_id text not null references users(id) on delete cascade,
  name text not null,
  value text not null,
  primary key (user_id, name)
) strict;
