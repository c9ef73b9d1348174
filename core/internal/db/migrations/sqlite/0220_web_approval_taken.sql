-- +goose Up
-- When the webproxy took an approval to send its request: one that was never
-- taken was never sent. What was approved before is taken for sent.
alter table web_approvals add column taken_at integer not null default 0;
update web_approvals set taken_at = decided_at where state = 'approved';
create index web_approvals_unsent on web_approvals (decided_at) where state = 'approved' and taken_at = 0;
