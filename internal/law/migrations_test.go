// Migrations only add: the program before goes on with the tables as they are
// (docs/upgrading.md).

package law

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestMigrationsOnlyAdd(t *testing.T) {
	seen := 0
	root := os.DirFS(filepath.Join("..", ".."))
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".sql" || filepath.Base(filepath.Dir(path)) != "migrations":
			return nil
		}
		seen++
		text, err := fs.ReadFile(root, path)
		for _, s := range moreThanAdds(string(text)) {
			t.Errorf("%s: the version before would not find what it knows, after: %s", path, s)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 2 {
		t.Errorf("saw %d migrations", seen)
	}
}

var (
	sqlComment = regexp.MustCompile(`--[^\n]*`)
	takesAway  = regexp.MustCompile(`(?i)\b(drop|rename|truncate|delete\s+from|alter\s+column|add\s+(constraint|check|foreign|unique|primary))\b|^\s*update\b|^\s*create\s+unique\s+index\b`)
	newColumn  = regexp.MustCompile(`(?i)\badd\s+(column\s+)?(if\s+not\s+exists\s+)?\w+[^,]*\bnot\s+null\b[^,]*`)
	newTable   = regexp.MustCompile(`(?i)\bcreate\s+table\s+(?:if\s+not\s+exists\s+)?([\w.]+)`)
	indexed    = regexp.MustCompile(`(?i)\bcreate\s+unique\s+index\b.*\bon\s+([\w.]+)`)
)

// moreThanAdds gives the statements of a migration that a program which does
// not know it may fail by. A unique index of a table made beside it is no such.
func moreThanAdds(sql string) (bad []string) {
	if strings.Contains(sql, "+goose Down") {
		bad = append(bad, "-- +goose Down: migrations are not undone")
	}
	fresh := map[string]bool{}
	for _, s := range strings.Split(sqlComment.ReplaceAllString(sql, ""), ";") {
		s = strings.TrimSpace(s)
		if m := newTable.FindStringSubmatch(s); m != nil {
			fresh[m[1]] = true
			continue
		}
		if m := indexed.FindStringSubmatch(s); m != nil && fresh[m[1]] {
			continue
		}
		column := newColumn.FindString(s)
		if takesAway.MatchString(s) || column != "" && !strings.Contains(strings.ToLower(column), "default") {
			bad = append(bad, s)
		}
	}
	return bad
}

func TestMoreThanAdds(t *testing.T) {
	for _, good := range []string{
		"-- drop it\ncreate table a.b (c int not null, d int references x on delete cascade); create unique index i on a.b (c)",
		"alter table a.b add column e text",
		"alter table a.b add e text not null default ''",
		"create index i on a.b (c)",
		"comment on table a.b is 'x'",
	} {
		if bad := moreThanAdds(good); len(bad) > 0 {
			t.Errorf("%q: %q", good, bad)
		}
	}
	for _, harm := range []string{
		"drop table a.b",
		"alter table a.b\n drop column c",
		"alter table a.b alter column c type int",
		"alter table a.b rename to c",
		"alter table a.b add column e text not null",
		"alter table a.b add column d int, add column e text not null",
		"alter table a.b add constraint c check (d > 0)",
		"create unique index i on a.b (c)",
		"delete from a.b",
		" update a.b set c = 1",
		"truncate a.b",
		"create table a.b (c int)\n-- +goose Down",
	} {
		if len(moreThanAdds(harm)) == 0 {
			t.Errorf("%q passes", harm)
		}
	}
}
