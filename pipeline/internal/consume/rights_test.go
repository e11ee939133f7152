// What rights a source, a transform and a sink need in Kafka.

package consume_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/ingest"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// rights are those that the remedy of TW-KAFKA-REFUSED names, but one operation
// on topics.
func rights(but kmsg.ACLOperation) (all []kfake.ACL) {
	add := func(resource kmsg.ACLResourceType, name string, pattern kmsg.ACLResourcePatternType, ops ...kmsg.ACLOperation) {
		for _, op := range ops {
			if resource != kmsg.ACLResourceTypeTopic || op != but {
				all = append(all, kfake.ACL{Resource: resource, Name: name, Pattern: pattern, Operation: op, Allow: true})
			}
		}
	}
	const literal, prefixed = kmsg.ACLResourcePatternTypeLiteral, kmsg.ACLResourcePatternTypePrefixed
	for _, prefix := range []string{"s", "_tallywire."} { // the names of a bed's sources begin with s
		add(kmsg.ACLResourceTypeTopic, prefix, prefixed, kmsg.ACLOperationCreate, kmsg.ACLOperationDescribe, kmsg.ACLOperationDescribeConfigs,
			kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDelete)
	}
	add(kmsg.ACLResourceTypeTopic, "__consumer_offsets", literal, kmsg.ACLOperationDescribe)
	add(kmsg.ACLResourceTypeGroup, "tallywire.", prefixed, kmsg.ACLOperationRead, kmsg.ACLOperationDescribe)
	add(kmsg.ACLResourceTypeTransactionalId, "tallywire", prefixed, kmsg.ACLOperationDescribe, kmsg.ACLOperationWrite)
	add(kmsg.ACLResourceTypeCluster, "kafka-cluster", literal, kmsg.ACLOperationClusterAction)
	return all
}

// a row, and then no more.
type once struct{ b *enginetest.Bed }

func (s once) Run(ctx context.Context, out pipeline.SourceOutlet) error {
	if _, err := out.Resume(ctx); err != nil {
		return err
	}
	batch := change.Get()
	enginetest.AppendRow(batch, s.b.Table(), enginetest.Row{Op: change.Create, ID: 1, Val: "one"}, 1, 0)
	batch.Resume = []byte(`{"lsn":1}`)
	if err := out.Send(ctx, batch); err != nil {
		return err
	}
	select {
	case <-out.Durable():
	case <-ctx.Done():
	}
	return nil
}

// If this failed, who gives the rights that are asked for would be refused again.
func TestRightsThatAreNamed(t *testing.T) {
	bed := func(t *testing.T, but kmsg.ACLOperation) *enginetest.Bed {
		fake := []kfake.Opt{kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "admin", "admin"), kfake.User("PLAIN", "tallywire", "tallywire", rights(but)...)}
		as := func(user string) kgo.Opt { return kgo.SASL(plain.Auth{User: user, Pass: user}.AsMechanism()) }
		return enginetest.NewBedOf(t, fake, as("tallywire"), as("admin"))
	}
	within := func(t *testing.T, what string, ended <-chan error) error {
		t.Helper()
		select {
		case err := <-ended:
			return err
		case <-time.After(testkit.Patience):
			t.Fatalf("waited for the end of %s in vain", what)
			return nil
		}
	}
	run := func(t *testing.T, b *enginetest.Bed) error {
		ended := make(chan error, 1)
		go func() {
			ended <- ingest.Run(t.Context(), b.Env, pipeline.IngestSpec{Name: b.Source, Source: once{b}})
		}()
		return within(t, "the source", ended)
	}
	t.Run("source", func(t *testing.T) {
		if err := run(t, bed(t, kmsg.ACLOperationDescribeConfigs)); !problem.Has(err, kafka.ErrRefused) {
			t.Errorf("ended with %v, want TW-KAFKA-REFUSED", err)
		}
		b := bed(t, kmsg.ACLOperationUnknown)
		if err := run(t, b); err != nil || len(b.Committed()) != 1 { // Remedy: TW-KAFKA-REFUSED
			t.Errorf("ended with %v; %d records came", err, len(b.Committed()))
		}
	})
	for name, loop := range loops {
		t.Run(name, func(t *testing.T) {
			b := enginetest.NewTopicBed(bed(t, kmsg.ACLOperationDescribeConfigs))
			b.Many(10)
			start, _ := loop(b)
			_, ended := start(b.Env)
			if err := within(t, "it", ended); !problem.Has(err, kafka.ErrRefused) {
				t.Errorf("ended with %v, want TW-KAFKA-REFUSED", err)
			}
			b = enginetest.NewTopicBed(bed(t, kmsg.ACLOperationUnknown))
			b.Many(10)
			start, through := loop(b)
			stop, _ := start(b.Env)
			b.Drained()
			b.Eventually("all to come through", func() (bool, string) { n := through(); return n == b.N, fmt.Sprint(n) })
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}
