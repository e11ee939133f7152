package law

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/tallywire/tallywire/"

// table says what a folder may import of our own; the longest matching folder
// counts. "x/..." is x and all below. It is the table of docs/ARCHITECTURE.md.
var table = map[string][]string{
	"change":   {},
	"avro":     {"change", "internal/problem"},
	"pipeline": {"pipeline/state", "change", "avro", "internal/..."},
	// State knows Redis and batches, not the loops that fill it.
	"pipeline/state":   {"change", "internal/clock", "internal/problem", "internal/redis"},
	"pipeline/records": {"change", "avro", "internal/..."},
	"pipeline/parked":  {"change", "internal/..."},
	// One loop each; never another.
	"pipeline/ingest":    {"pipeline", "pipeline/records", "pipeline/parked", "pipeline/internal/...", "change", "avro", "internal/..."},
	"pipeline/transform": {"pipeline", "pipeline/state", "pipeline/records", "pipeline/parked", "pipeline/internal/...", "change", "avro", "internal/..."},
	"pipeline/deliver":   {"pipeline", "pipeline/parked", "pipeline/internal/...", "change", "avro", "internal/..."},
	// What the loops share.
	"pipeline/internal":            {"pipeline", "pipeline/internal/...", "change", "avro", "internal/..."},
	"pipeline/internal/enginetest": {"pipeline", "pipeline/records", "pipeline/parked", "change", "avro", "internal/..."},
	"pipeline/pipelinetest":        {"pipeline", "pipeline/state", "change", "avro", "internal/..."},
	// Components see the engine's contracts, the noun, the canonical
	// contracts (avro), and internal.
	"sources":    {"pipeline", "change", "avro", "internal/..."},
	"transforms": {"pipeline", "pipeline/state", "change", "avro", "internal/..."},
	"sinks":      {"pipeline", "change", "avro", "internal/..."},
	// Decoding needs no engine and no connection: benchmarks and fuzzing use it alone.
	"sources/postgres":          {"sources/postgres/pgoutput", "sources/postgres/wire", "pipeline", "change", "avro", "internal/..."},
	"sources/postgres/pgoutput": {"change", "internal/problem"},
	"sources/postgres/wire":     {"internal/problem"},
	// A mapping is a chain: dedupe is its first stage, and where rules have lookups, the
	// engine of a join stands before the last.
	"transforms/mapping": {"transforms/dedupe", "transforms/join", "pipeline", "pipeline/state", "change", "avro", "internal/..."},
	"cmd":                {"..."},
	"internal":           {"internal/...", "change", "avro"},
	// These drive the engine or stand for the outside world.
	"internal/supervise": {"internal/...", "change", "avro", "pipeline/..."},
	"internal/demo":      {"..."},
	"internal/embedded":  {"internal/problem"},
	// These run the rules of a mapping by themselves: of the components they see it,
	// and of the source its types.
	"internal/rules":   {"internal/...", "change", "avro", "transforms/mapping"},
	"internal/cases":   {"internal/...", "change", "avro", "transforms/mapping", "sources/postgres/pgoutput"},
	"internal/preview": {"internal/...", "change", "avro", "transforms/mapping", "pipeline"},
	"internal/testkit": {"..."},
	"internal/chaos":   {"..."},
	"internal/law":     {},
	"internal/mutants": {},
	// The tiers of checks share a test server with the packages they run.
	"internal/ci": {"internal/embedded", "internal/testkit"},
	"benchmarks":  {"..."},
	"examples":    {},
}

// never is not allowed whatever the table says: internal packages that only a
// few may lean on.
var never = map[string]string{
	"internal/demo":      "cmd internal/demo internal/chaos benchmarks",
	"internal/chaos":     "internal/chaos",
	"internal/supervise": "cmd internal/demo internal/chaos internal/supervise benchmarks",
	"internal/embedded":  "cmd internal/demo internal/chaos internal/ci internal/supervise internal/embedded internal/testkit pipeline/internal/enginetest benchmarks",
	// Tests import it, and what runs them.
	"internal/testkit": "internal/ci internal/testkit pipeline/internal/enginetest benchmarks",
	// Only tests import it.
	"pipeline/internal/enginetest": "pipeline/internal/enginetest",
	// Only commands ask for them, or one for another.
	"internal/rules":   "cmd internal/rules internal/cases internal/preview",
	"internal/cases":   "cmd internal/cases",
	"internal/preview": "cmd internal/preview",
	"internal/console": "cmd internal/supervise internal/console internal/demo",
}

// A component that reaches around the engine, or into another component, has
// guarantees of its own that nobody tests.
func TestImportTable(t *testing.T) {
	root := filepath.Join("..", "..")
	files := 0
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		from := filepath.ToSlash(filepath.Dir(rel))
		for _, im := range f.Imports {
			p, err := strconv.Unquote(im.Path.Value)
			if err != nil {
				return err
			}
			if to, ours := strings.CutPrefix(p, module); ours {
				if why := forbidden(from, to); why != "" {
					t.Errorf("%s imports %s: %s", rel, to, why)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("looked at %d files only", files)
	}
}

// forbidden says why from may not import to, or "".
func forbidden(from, to string) string {
	for target, who := range never {
		if !under(to, target) {
			continue
		}
		ok := false
		for _, w := range strings.Fields(who) {
			ok = ok || under(from, w)
		}
		if !ok {
			return "only these may import " + target + ": " + who
		}
	}
	row := from
	for row != "." && table[row] == nil {
		row = path.Dir(row)
	}
	allowed, ok := table[row]
	if !ok {
		return "folder " + from + " is not in the table"
	}
	if under(to, row) && strings.HasPrefix(row, "internal/") {
		return "" // parts of one package's own tree
	}
	for _, a := range allowed {
		if dir, all := strings.CutSuffix(a, "..."); all {
			if dir == "" || under(to, strings.TrimSuffix(dir, "/")) {
				return ""
			}
		} else if a == to {
			return ""
		}
	}
	return "the table allows " + row + " only " + strings.Join(allowed, ", ")
}

func under(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// The law's own test: what it must not let through.
func TestForbidden(t *testing.T) {
	for _, c := range []struct{ from, to string }{
		{"change", "avro"},
		{"avro", "pipeline"},
		{"pipeline", "sources/postgres"},
		{"sources/postgres", "sinks/rest"},
		{"sources/postgres", "sources/webhook"},
		{"transforms/join", "transforms/mapping"},
		{"sinks/rest", "internal/testkit"},
		{"sinks/rest", "internal/embedded"},
		{"internal/demo", "internal/testkit"},
		{"cmd/tallywire", "internal/testkit"},
		{"sinks/rest", "internal/rules"},
		{"internal/preview", "internal/cases"},
		{"internal/cases", "sources/postgres"},
		{"internal/draft", "transforms/mapping"},
		{"sources/postgres/pgoutput", "pipeline"},
		{"sources/webhook", "sources/postgres/pgoutput"},
		{"internal/kafka", "pipeline"},
		{"internal/obs", "internal/demo"},
		{"pipeline", "internal/supervise"},
		{"pipeline", "pipeline/pipelinetest"},
		{"pipeline/state", "pipeline"},
		{"pipeline/state", "internal/kafka"},
		{"sinks/rest", "pipeline/state"},
		{"pipeline", "pipeline/ingest"},
		{"pipeline/transform", "pipeline/deliver"},
		{"pipeline/deliver", "pipeline/state"},
		{"pipeline/internal/consume", "pipeline/parked"},
		{"pipeline/ingest", "pipeline/internal/enginetest"},
		{"sources/postgres", "pipeline/ingest"},
		{"pipeline/records", "pipeline"},
		{"transforms/join", "pipeline/records"},
	} {
		if forbidden(c.from, c.to) == "" {
			t.Errorf("%s may import %s", c.from, c.to)
		}
	}
	for _, c := range []struct{ from, to string }{
		{"cmd/tallywire", "sinks/rest"}, {"internal/demo", "internal/demo/erp"}, {"pipeline/pipelinetest", "pipeline"}, {"sinks/warehouse", "avro"},
	} {
		if why := forbidden(c.from, c.to); why != "" {
			t.Errorf("%s may not import %s: %s", c.from, c.to, why)
		}
	}
}
