package ingest

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// Lost if this fails: after an upgrade a source does not know how far it was,
// and loads everything again, or nothing.
func TestPositionsOfEachForm(t *testing.T) {
	want := position{
		Source: "psa", Cluster: "iC5t0VZ8TjyxOZsLZHfSxA",
		WrittenAt: time.Date(2026, 11, 30, 0, 0, 0, 123456000, time.UTC),
	}
	want.setResume([]byte(`{"system_identifier":"7711381119221907572","timeline":1,"slot":"tallywire_psa","lsn":"16/B374D848","tx":{"final_lsn":"16/B374D900","delivered":4096,"hash":"00c0ffee00c0ffee","binary":true}}`))
	for form := range positionForm + 1 { // 0 is that of before forms had numbers
		text, err := os.ReadFile(fmt.Sprintf("testdata/position-%d.json", form))
		if err != nil {
			t.Fatal("each form that was ever written is read: ", err)
		}
		got, err := decodePosition(text)
		if err != nil {
			t.Fatalf("form %d: %v", form, err)
		}
		want.Form, want.Topics, want.TopicsIn, want.TopicsAt = form, nil, 0, nil
		if at := int64(4711); form < 2 {
			want.Topics = map[string]positionTopic{"psa.public.time_entry": {ID: "0d1c2b3a495867768594a3b2c1d0e0f1", Partitions: 4}}
		} else {
			want.TopicsIn, want.TopicsAt = 3, &at
		}
		if form == 3 {
			want.Quarantine = map[string]*quarantined{"psa.public.invoice": {
				Open: true, At: []int64{12, 0, 7, 3}, Since: time.Date(2026, 11, 29, 0, 0, 0, 5000, time.UTC), Why: "refused", Do: DecideAccept,
				Left: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), LeftTo: time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC),
			}}
		}
		if diff := cmp.Diff(&want, got, cmpopts.IgnoreUnexported(quarantined{})); diff != "" {
			t.Errorf("form %d (want, got):\n%s", form, diff)
		}
		if form > 0 && !bytes.Equal(want.encode(), text) {
			t.Errorf("what is written has changed, and its form has not:\n%s\n%s", want.encode(), text)
		}
	}
	newer := fmt.Appendf(nil, `{"v":%d,"source":"psa","resume":{}}`, positionForm+1)
	if _, err := decodePosition(newer); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("form %d", positionForm+1)) {
		t.Errorf("a newer form: %v", err)
	}
}
