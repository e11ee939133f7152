package codes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/problem"
)

func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// As a spreadsheet writes it: with a mark in front, other columns, texts in quotes.
func TestLoad(t *testing.T) {
	l, err := Load(write(t, map[string]string{"status.csv": "\ufefflabel,code,value\r\n\"New, or open\",1,draft\r\n# no longer used\r\nDone,2,approved\r\n"}), write(t, map[string]string{"kind.csv": "code,value\na,b\n"}))
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	if got := strings.Join(l.Names(), " "); got != "kind status" {
		t.Error(got)
	}
	if v, ok := l["status"].Value("1"); v != "draft" || !ok || len(l["status"].Codes()) != 2 {
		t.Errorf("code 1 means %q, %v; codes %q", v, ok, l["status"].Codes())
	}
	if _, ok := l["status"].Value("3"); ok {
		t.Error("a code that is not there has a value")
	}
}

// Lost if this fails: a code means what another line says.
func TestMistakes(t *testing.T) {
	dir := write(t, map[string]string{
		"a.csv": "code,value\n1,x\n\n1,y\n2,\n3\n",
		"b.csv": "kod,value\n",
		"c.csv": "code,value\n",
		"d.csv": "code,value\n\"1,x\n",
		"e.csv": "",
	})
	_, err := Load(dir, filepath.Join(dir, "not there"), write(t, map[string]string{"a.csv": "code,value\n1,x\n"}), t.TempDir())
	all := problem.Format(err)
	for _, says := range []string{
		"a.csv:4", `code "1" stands in line 2 too`, "a.csv:5", `code "2" has no value`, "a.csv:6", "wrong number of fields",
		"b.csv:1", "kod, value: want code and value", "c.csv:1", "the list is empty", "d.csv:", "e.csv:1", "not there", "there is a list a in ", "no file *.csv",
	} {
		if !strings.Contains(all, says) {
			t.Errorf("it does not say %q", says)
		}
	}
	if t.Failed() {
		t.Log(all)
	}
	// Remedy: TW-CODES
	if _, err := Load(write(t, map[string]string{"a.csv": "code,value\n1,x\n2,y\n3,z\n"})); err != nil {
		t.Error(err)
	}
}
