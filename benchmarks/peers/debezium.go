// Debezium in Kafka Connect, standalone, tuned: large batches, lz4, the
// producer's buffers to match, ParallelGC, schemas registered beforehand.

package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tallywire/tallywire/internal/testkit"
)

// One prefix in all runs, so that the schemas are registered but once.
const dbzTopic = "dbz." + table

// connector is what a run sets beyond what all share.
type connector struct {
	db, slot string
	snapshot string // snapshot.mode
	latency  bool   // poll often, do not linger
	register bool   // let the converter register schemas: slow
}

var heap = []string{"-Xms3g", "-Xmx3g", "-Xmn2g", "-XX:+UseParallelGC"}

// converters are the worker's: Avro, found in the registry once an hour.
func (w *world) converters(register bool) map[string]string {
	p := map[string]string{}
	for _, k := range []string{"key.converter", "value.converter"} {
		p[k] = "io.apicurio.registry.utils.converter.AvroConverter"
		p[k+".apicurio.registry.url"] = w.registry.CoreURL()
		p[k+".apicurio.registry.auto-register"] = strconv.FormatBool(register)
		p[k+".apicurio.registry.find-latest"] = strconv.FormatBool(!register)
		p[k+".apicurio.registry.check-period-ms"] = "3600000"
		p[k+".apicurio.registry.headers.enabled"] = "false"
		p[k+".apicurio.registry.as-confluent"] = "true"
	}
	return p
}

// properties of the connector.
func (c *connector) properties(w *world) (map[string]string, error) {
	u, err := url.Parse(w.pg.DSN(c.db))
	if err != nil {
		return nil, err
	}
	poll, linger := "10", "20"
	if c.latency {
		poll, linger = "1", "0"
	}
	return map[string]string{
		"name": "dbz", "connector.class": "io.debezium.connector.postgresql.PostgresConnector", "tasks.max": "1", "topic.prefix": "dbz",
		"database.hostname": u.Hostname(), "database.port": u.Port(), "database.user": u.User.Username(), "database.password": "none", "database.dbname": c.db,
		"slot.name": c.slot, "plugin.name": "pgoutput", "publication.name": publication, "publication.autocreate.mode": "disabled",
		"table.include.list": table, "snapshot.mode": c.snapshot, "snapshot.fetch.size": "10240", "snapshot.max.threads": "1",
		"max.batch.size": "16384", "max.queue.size": "65536", "poll.interval.ms": poll, "schema.refresh.mode": "columns_diff_exclude_unchanged_toast",
		"producer.override.acks": "all", "producer.override.enable.idempotence": "true", "producer.override.max.in.flight.requests.per.connection": "5",
		"producer.override.linger.ms": linger, "producer.override.batch.size": "1048576", "producer.override.buffer.memory": "134217728",
		"producer.override.max.request.size": "8388608", "producer.override.compression.type": "lz4",
	}, nil
}

// worker is what standalone and distributed share.
func (w *world) worker(ctx context.Context, b *broker, register bool) (map[string]string, *testkit.ConnectInstall, error) {
	in, err := testkit.ConnectBinaries(ctx)
	if err != nil {
		return nil, nil, err
	}
	p := w.converters(register)
	p["bootstrap.servers"] = b.Addr()
	p["plugin.path"], p["plugin.discovery"] = in.Plugins, "only_scan"
	p["connector.client.config.override.policy"] = "All"
	p["listeners"] = "http://127.0.0.1:0"
	return p, in, nil
}

// start runs a worker of its own for the connector; no offsets are kept.
func (c *connector) start(ctx context.Context, w *world, b *broker, name string) (*child, error) {
	p, in, err := w.worker(ctx, b, c.register)
	if err != nil {
		return nil, err
	}
	p["offset.storage.file.filename"] = filepath.Join(w.tmp, name+".offsets")
	conf, err := c.properties(w)
	if err != nil {
		return nil, err
	}
	worker, file := filepath.Join(w.tmp, name+".worker"), filepath.Join(w.tmp, name+".connector")
	if err := errors.Join(writeProperties(worker, p), writeProperties(file, conf)); err != nil {
		return nil, err
	}
	args := append([]string{"java"}, heap...)
	return w.launch(name, nil, append(args, "-cp", in.Classpath, testkit.ConnectStandalone, worker, file)...)
}

func writeProperties(file string, p map[string]string) error {
	var b strings.Builder
	for k, v := range p {
		fmt.Fprintf(&b, "%s=%s\n", k, v)
	}
	return os.WriteFile(file, []byte(b.String()), 0o600)
}

// debezium drains a backlog.
func debezium(ctx context.Context, w *world, name, base string, partitions int32) (f figure, err error) {
	log := w.logs[base]
	if err := warmDebezium(ctx, w); err != nil {
		return f, fmt.Errorf("registering schemas: %w", err)
	}
	slot := w.newSlot()
	if err := w.copySlot(ctx, log, slot); err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, w.dropSlot(ctx, slot)) }()
	if err := w.kafka.fresh(ctx, dbzTopic, partitions, nil); err != nil {
		return f, err
	}
	k := &connector{db: log.Name, slot: slot, snapshot: "no_data"}
	c, err := k.start(ctx, w, w.kafka, name)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, c.kill()) }()
	x := &watcher{w: w, slot: slot, self: c, broker: w.kafka}
	if err := x.delivered(ctx, dbzTopic, log.Records); err != nil {
		return f, err
	}
	return x.figure(log.Changes), nil
}

// warmDebezium registers the schemas by a run that ends with its first record.
// With registration left on, the converter serialises the schema again for each
// record, and Debezium runs at half its speed.
func warmDebezium(ctx context.Context, w *world) (err error) {
	if w.warm["debezium"] {
		return nil
	}
	slot := w.newSlot()
	if err := w.copySlot(ctx, w.logs["base_a"], slot); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.dropSlot(ctx, slot)) }()
	if err := w.kafka.fresh(ctx, dbzTopic, 1, nil); err != nil {
		return err
	}
	k := &connector{db: "base_a", slot: slot, snapshot: "no_data", register: true}
	c, err := k.start(ctx, w, w.kafka, "debezium-warm")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.kill()) }()
	if _, err := w.firstRecord(ctx, c, w.kafka, dbzTopic, every); err != nil {
		return err
	}
	w.warm["debezium"] = true
	return nil
}
