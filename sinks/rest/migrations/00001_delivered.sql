-- What a REST sink knows of the far side: the cross-reference and the last
-- version delivered per key, and the intents of writes whose outcome is open.

-- +goose Up
create table tallywire.delivered (
  sink          text        not null,
  entity        text        not null, -- the topic: ps.customer, …
  key           text        not null,
  topic_id      uuid        not null, -- version of the record: the topic's id and the offset in it
  "partition"   integer     not null,
  record_offset bigint      not null,
  digest        bytea       not null, -- SHA-256 of what the far side was given
  external_id   text        not null,
  number        text        not null,
  etag          text        not null,
  at            timestamptz not null default now(),
  primary key (sink, entity, key)
);
comment on table tallywire.delivered is 'Cross-reference of REST sinks: the last version that each key was delivered in, and its id on the far side.';
create unique index delivered_external on tallywire.delivered (sink, entity, external_id);

create table tallywire.intents (
  sink          text        not null,
  entity        text        not null,
  key           text        not null,
  topic_id      uuid        not null,
  "partition"   integer     not null,
  record_offset bigint      not null,
  digest        bytea       not null,
  ref           text        not null, -- what to look for on the far side: a number or an external reference
  owner         text        not null, -- the instance that writes
  started_at    timestamptz not null default clock_timestamp(),
  not_after     timestamptz not null, -- the request is not sent later than this
  primary key (sink, entity, key)
);
comment on table tallywire.intents is 'Writes of REST sinks that were begun and whose outcome is not recorded yet; settled by reading the far side.';
