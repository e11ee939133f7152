package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/cases"
)

// put writes files into a directory of its own, and gives that.
func put(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const exampleFile = "../../examples/demo/tallywire.yml"

// The cases that users start from must be as expected, and so must the one that
// the error shows.
func TestExampleCases(t *testing.T) {
	code, out, errs := tw("mapping", "test", "-c", exampleFile, "-o", "json")
	var res struct {
		OK           bool
		Cases, Files int
	}
	if err := json.Unmarshal([]byte(out), &res); err != nil || code != exitOK || !res.OK || res.Cases < 5 || res.Files < 2 {
		t.Errorf("exit %d %+v %v\n%s", code, res, err, errs)
	}
	dir := put(t, map[string]string{"tallywire.yml": "transforms: {canonical: {type: map, topics: [{from: psa.public.line, to: ps.invoice_line}]}}\nsources: {psa: {type: postgres, dsn: env:TW_TEST_NOT_SET_AT_ALL}}\n"})
	code, _, errs = tw("mapping", "test", "-c", dir+"/tallywire.yml")
	if code != exitFailed || !strings.Contains(errs, "TW-CASE-NONE") || !strings.Contains(errs, cases.Minimal) {
		t.Errorf("exit %d\n%s", code, errs)
	}
	shown := put(t, map[string]string{"a.test.yml": cases.Minimal}) // Remedy: TW-CASE-NONE
	if code, out, errs := tw("mapping", "test", "-c", exampleFile, shown); code != exitOK || out != "1 case of 1 file are as expected\n" {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}

// Lost if this fails: CI passes what is not as expected, or a person does not see
// what differs and what was written.
func TestMappingTestTells(t *testing.T) {
	file := filepath.Join(put(t, map[string]string{"a.test.yml": strings.Replace(cases.Minimal, "amount: 121}}\n", "amount: 122}}\n", 1)}), "a.test.yml")
	does := func(want int, says string, args ...string) (out string) {
		t.Helper()
		code, out, errs := tw(append([]string{"mapping", "test", "-c", exampleFile, file}, args...)...)
		if code != want || !strings.Contains(out+errs, says) {
			t.Errorf("exit %d, want %d, with %q in\n%s%s", code, want, says, out, errs)
		}
		return out
	}
	out := does(exitFailed, file+":6: ids become text\n  record 1, ps.invoice_line 17\n    FIELD   WANT  GOT\n    amount  122   121\n")
	if !strings.HasSuffix(out, "\n1 of 1 case of 1 file are not as expected; --update would write what came out\n") {
		t.Errorf("it ends\n%s", out)
	}
	var res struct {
		OK          bool
		Differences []cases.Difference
	}
	out = does(exitFailed, `"ok": false`, "-o", "json")
	if err := json.Unmarshal([]byte(out), &res); err != nil || len(res.Differences) != 1 || res.Differences[0].Line != 6 || *res.Differences[0].Got != "121" {
		t.Errorf("%v\n%s", err, out)
	}
	does(exitOK, file+":6: ids become text: wrote amount\n1 case of 1 file are as expected\n", "--update")
	does(exitOK, "1 case of 1 file are as expected\n")
	if err := os.WriteFile(file, []byte("transform: canonical\ntopic: x\ncases: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	does(exitFailed, "TW-CASE-FORM")
}
