package wire

import (
	"testing"
	"time"
)

const live, backlog = time.Millisecond, 4 * time.Millisecond

// flow feeds a pace with octets at a rate, and gives the longest pause it asked
// for and the reads it took.
func flow(p *pace, from time.Time, span time.Duration, perMS int) (now time.Time, longest time.Duration, reads int) {
	const eager = 20 * time.Microsecond // until a reader that waits is woken by the next row
	ms := float64(time.Millisecond)
	for now = from; now.Sub(from) < span; reads++ {
		d := p.pause()
		longest = max(longest, d)
		// Without a pause one row of 200 octets is read as soon as it is there.
		d = max(d, eager, time.Duration(200/float64(perMS)*ms))
		now = now.Add(d)
		p.took(int(float64(perMS)*float64(d)/ms), false, now)
	}
	return now, longest, reads
}

// Lost if this fails: a row that comes alone waits for others that do not come;
// or rows that come in thousands are taken one by one, at a wake-up each.
func TestPace(t *testing.T) {
	at := time.Unix(1000, 0)
	p := pace{flow: live, bulk: backlog, last: at}
	at, longest, _ := flow(&p, at, time.Second, 20) // 100 rows a second
	if longest != 0 {
		t.Errorf("100 rows a second are held back for %v", longest)
	}
	at, longest, _ = flow(&p, at, time.Second, 1000) // 1 MB/s, evenly
	if longest != 0 {
		t.Errorf("1 MB/s is held back for %v", longest)
	}
	at, longest, reads := flow(&p, at, time.Second, 5000) // 5 MB/s
	if longest != live || reads > 1100 {
		t.Errorf("5 MB/s: held back for %v at most, %d reads a second, want %v and one each ms", longest, reads, live)
	}
	at, longest, reads = flow(&p, at, time.Second, 100_000) // 100 MB/s
	if longest != backlog || reads > 300 {
		t.Errorf("100 MB/s: held back for %v at most, %d reads a second, want %v and one each 4 ms", longest, reads, backlog)
	}
	// Quiet again: what comes 20 ms after a bulk is read at once.
	p.took(200, false, at.Add(200*time.Millisecond))
	if d := p.pause(); d != 0 {
		t.Errorf("after 200 ms of silence a row waits for %v", d)
	}
}

// Lost if this fails: a reader sleeps although the kernel holds more than it
// took, and the walsender waits for room.
func TestPaceReadsOnWhileThereIsMore(t *testing.T) {
	p := pace{flow: live, bulk: backlog}
	now := time.Unix(1000, 0)
	p.took(chunkSize, true, now)
	if d := p.pause(); d != 0 {
		t.Errorf("waits for %v with octets at hand", d)
	}
	p.took(chunkSize/2, false, now)
	if d := p.pause(); d != backlog {
		t.Errorf("waits for %v when a backlog flows, want %v", d, backlog)
	}
}
