-- +goose Up
-- The single sign-on provider's own name of the session that a session came
-- by (claim sid), so that the provider can end it.
alter table sessions add column provider_session text not null default '';

-- What providers said has ended, for a while: a logout token counts once, and
-- a sign-in that was on its way meanwhile is noticed. session is a sid, or
-- empty for every session of the subject.
create table sso_logouts (
  provider_id text not null references sso_providers (id) on delete cascade,
  token text not null,
  session text not null,
  subject text not null,
  at bigint not null,
  constraint sso_logouts_key primary key (provider_id, token)
);
create index sso_logouts_at on sso_logouts (at);
