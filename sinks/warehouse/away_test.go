package warehouse

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/secret"
)

func readAt(tb testing.TB, s *Sink, f *feed) time.Time {
	tb.Helper()
	at, err := s.ReadAt(tb.Context(), at(f.topic))
	if err != nil {
		tb.Fatal(err)
	}
	return at[0]
}

// F6. Lost if this fails: an upgrade that reads every topic in vain, or one that
// takes an absence of before for none, in silence; or the way back.
func TestReadAtOfAnEarlierVersion(t *testing.T) {
	dsn, conn := fresh(t)
	s, f := open(t, dsn, "ps.customer"), newFeed("ps.customer", 1)
	claim(t, s, "a", f)
	write(t, s, "a", f.batch(m{"customer_id": "1", "name": "x"}))
	exec(t, conn, "ALTER TABLE _tallywire.offsets DROP COLUMN read_at; UPDATE _tallywire.offsets SET updated_at = '2026-01-02 03:04:05Z'")

	var said bytes.Buffer
	newer, err := New(Config{DSN: secret.DSNOf(dsn), Topics: []string{"ps.customer"}}, Options{Name: "warehouse", Log: slog.New(slog.NewTextHandler(&said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = newer.Close() })
	if got := claim(t, newer, "b", f); got != 1 {
		t.Fatalf("the stored offset is %d", got)
	}
	if !strings.Contains(said.String(), "UPDATE _tallywire.offsets SET read_at = 'epoch'") {
		t.Errorf("what is not known is not said: %s", said.String())
	}
	if got := readAt(t, newer, f); !got.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("read at %v, want the time of the last write", got)
	}

	// The earlier version beside it, by its own statements.
	exec(t, conn, `INSERT INTO _tallywire.offsets AS o (sink, topic, partition, topic_id, next_offset, owner)
		SELECT sink, topic, 1, topic_id, -1, 'old' FROM _tallywire.offsets
		ON CONFLICT (sink, topic, partition) DO UPDATE SET owner = excluded.owner, updated_at = now()`)
	exec(t, conn, `UPDATE _tallywire.offsets SET next_offset = 7, updated_at = '2026-02-03Z' WHERE partition = 1 AND owner = 'old' AND next_offset = -1`)
	second := []change.Coord{{Topic: f.topic, Partition: 1}}
	if _, err := newer.Claim(t.Context(), "c", second); err != nil {
		t.Fatal(err)
	}
	got, err := newer.ReadAt(t.Context(), second)
	if err != nil || !got[0].Equal(time.Date(2026, 2, 3, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("read at %v, %v, want the earlier version's last write", got, err)
	}
}

// F6. Lost if this fails: rows that were deleted, where somebody deleted the
// offsets of a table and left its rows.
func TestOffsetsDeletedAlone(t *testing.T) {
	dsn, conn := fresh(t)
	s, f := open(t, dsn, "ps.customer"), newFeed("ps.customer", 1)
	claim(t, s, "a", f)
	write(t, s, "a", f.batch(m{"customer_id": "1", "name": "x"}))
	exec(t, conn, "DELETE FROM _tallywire.offsets")
	claim(t, s, "b", f)
	if got := readAt(t, s, f); !got.IsZero() {
		t.Errorf("read at %v, but nobody knows", got)
	}
	exec(t, conn, "TRUNCATE ps.customer; DELETE FROM _tallywire.offsets")
	claim(t, s, "c", f)
	if got := readAt(t, s, f); time.Since(got) > time.Hour {
		t.Errorf("an empty table was read at %v", got)
	}
}
