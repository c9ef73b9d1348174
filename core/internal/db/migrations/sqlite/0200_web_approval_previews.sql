-- +goose Up
-- What those who decide see of a request: the method that the rule saw, and its
-- body as far as it can be shown. The latter goes with the decision.
alter table web_approvals add column rule_method text not null default '';
alter table web_approvals add column preview_kind text not null default '';
alter table web_approvals add column preview text not null default '';
