package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/preview"
)

// Lost if this fails: a window without rows reads as one in which nothing differs,
// or what would be rejected is not seen where CI looks.
func TestMappingPreviewTells(t *testing.T) {
	broker, url, _ := schemas(t)
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).CreateTopic(t.Context(), 1, 1, nil, "psa.public.line"); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "psa.public.line", Key: []byte("k"), Value: []byte("no Avro")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	file := put(t, map[string]string{"new.yml": `
kafka: {brokers: ["` + broker + `"]}
registry: {url: "` + url + `"}
redis: {embedded: true}
control: {embedded: true}
sources: {psa: {type: postgres, dsn: env:TW_TEST_NOT_SET_AT_ALL}}
transforms: {canonical: {type: map, topics: [{from: psa.public.line, to: ps.invoice_line}, {from: psa.public.employee, to: ps.resource}]}}
`}) + "/new.yml"
	does := func(want int, says []string, args ...string) (out string) {
		t.Helper()
		code, out, errs := tw(append([]string{"mapping", "preview"}, args...)...)
		if code != want {
			t.Errorf("%q: exit %d, want %d\n%s%s", args, code, want, out, errs)
		}
		for _, s := range says {
			if !strings.Contains(out+errs, s) {
				t.Errorf("%q does not say %q\n%s%s", args, s, out, errs)
			}
		}
		return out
	}
	does(exitDiffer, []string{"canonical over the last 7d, beside what the topics hold:", "psa.public.line: 1 record\n", "psa.public.employee: there is no such topic", "rejected:\n  TW-AVRO-GARBAGE: 1 row, such as psa.public.line, partition 0, offset 0:\n"}, "-c", file, "--against", "7d")
	var res preview.Result
	out := does(exitDiffer, nil, "-c", file, "--with", file, "--memory", "1", "-o", "json")
	if err := json.Unmarshal([]byte(out), &res); err != nil || res.With != file || res.Against != "24h" || len(res.Rejected) != 1 || len(res.Before) != 1 || res.Transform != "canonical" {
		t.Errorf("%v %s", err, out)
	}
	out = does(exitOK, []string{"psa.public.line: no records since ", "nothing to compare"}, "-c", file, "--with", file, "--against", "1ns")
	if strings.Contains(out, "nothing differs") {
		t.Errorf("of an empty window it is said:\n%s", out)
	}
	does(exitUsage, []string{"--against is a time such as"}, "-c", file, "--against", "yesterday")
	does(exitUsage, []string{"--memory is 1 or more"}, "-c", file, "--memory", "0")
	does(exitFailed, []string{"TW-MAP-TRANSFORM: ", `did you mean "canonical"?`}, "canonicl", "-c", file)
}
