-- +goose Up
create table tallywire.parked (
    stage            text        not null, -- the group without its prefix: a transform's or a sink's name
    kind             text        not null check (kind in ('transform', 'sink')),
    topic            text        not null,
    record_key       bytea       not null, -- as in Kafka; a record without key: "@partition/offset"
    key              text        not null, -- the key as a person reads it
    topic_id         uuid        not null,
    "partition"      int         not null,
    record_offset    bigint      not null,
    record_keyless   boolean     not null default false,
    record_value     bytea,                -- null: a tombstone
    record_headers   jsonb       not null default '[]',
    record_millis    bigint      not null,
    code             text        not null,
    reason           text        not null,
    remedy           text        not null,
    waits_for        text        not null default '', -- "entity/key", or '' when it is rejected
    attempts         int         not null default 1,
    first_at         timestamptz not null default now(),
    last_at          timestamptz not null default now(),
    retry_requested  boolean     not null default false,
    primary key (stage, topic, record_key)
);
create index parked_key on tallywire.parked (stage, topic, key);
create index parked_waits_for on tallywire.parked (stage, waits_for) where waits_for <> '';
create index parked_due on tallywire.parked (stage, topic, "partition") where retry_requested;
