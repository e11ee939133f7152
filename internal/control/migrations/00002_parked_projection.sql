-- +goose Up
-- The truth is the parked topic; where in it a row was read says which of two
-- is newer, whoever writes it. Null: the row was written by a version for which
-- the row itself was the truth.
alter table tallywire.parked add column at_topic uuid;
alter table tallywire.parked add column at_offset bigint;
alter table tallywire.parked add column at_record bigint; -- record_offset, as it was read there
