package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Lost if this fails: a test that was red, hung or never built counts as green.
func TestReadEvents(t *testing.T) {
	const p = `"Package":"` + module + `/pipeline"`
	for name, c := range map[string]struct {
		lines   []string
		red     []string
		passed  int
		skipped int
	}{
		"green": {lines: []string{`{"Action":"pass",` + p + `,"Test":"TestA"}`, `{"Action":"pass",` + p + `,"Elapsed":1}`}, passed: 1},
		"red test": {
			lines: []string{`{"Action":"output",` + p + `,"Test":"TestA","Output":"why\n"}`, `{"Action":"fail",` + p + `,"Test":"TestA"}`, `{"Action":"output",` + p + `,"Output":"FAIL\n"}`, `{"Action":"fail",` + p + `}`},
			red:   []string{"pipeline", "pipeline TestA"},
		},
		"a leak after green tests": {
			lines:  []string{`{"Action":"pass",` + p + `,"Test":"TestA"}`, `{"Action":"output",` + p + `,"Output":"leak\n"}`, `{"Action":"fail",` + p + `}`},
			passed: 1, red: []string{"pipeline"},
		},
		"killed in a test": {
			lines: []string{`{"Action":"output",` + p + `,"Test":"TestA","Output":"panic: out of time\n"}`, `{"Action":"fail",` + p + `}`},
			red:   []string{"pipeline TestA"},
		},
		"does not build": {
			lines: []string{`{"Action":"build-output","ImportPath":"x","Output":"undefined: y\n"}`, `{"Action":"build-fail","ImportPath":"x"}`, `{"Action":"fail",` + p + `,"FailedBuild":"x"}`},
			red:   []string{"x"},
		},
		"skipped": {
			lines:   []string{`{"Action":"skip",` + p + `,"Test":"TestA"}`, `{"Action":"pass",` + p + `,"Test":"TestB"}`, `{"Action":"pass",` + p + `}`},
			skipped: 1, passed: 1,
		},
		"no test at all": {lines: []string{`{"Action":"pass",` + p + `}`}},
	} {
		t.Run(name, func(t *testing.T) {
			var said strings.Builder
			o, err := readEvents(strings.NewReader(strings.Join(c.lines, "\n")+"\n"), &said)
			if err != nil {
				t.Fatal(err)
			}
			var red []string
			for key := range o.red {
				red = append(red, key)
			}
			slices.Sort(red)
			if !slices.Equal(red, c.red) || o.passed != c.passed || len(o.skipped) != c.skipped {
				t.Errorf("red %q, %d passed, %d skipped; want %q, %d, %d", red, o.passed, len(o.skipped), c.red, c.passed, c.skipped)
			}
			if green := o.close(&said, false) == nil; green != (name == "green") {
				t.Errorf("counts as green: %v\n%s", green, said.String())
			}
			for key := range o.red {
				if key != "pipeline" && !strings.Contains(said.String(), strings.TrimSpace(o.red[key])) {
					t.Errorf("what %s printed is not shown", key)
				}
			}
		})
	}
}

// Lost if this fails: the table says nothing of what was skipped.
func TestStepReadsCounts(t *testing.T) {
	s := command("x", "sh", "-c", "echo tests: 3 passed, 1 failed, 2 skipped; exit 1")
	s.do(t.Context())
	if !s.failed || s.tests != 4 || s.skipped != 2 || !s.counted {
		t.Errorf("%+v", s)
	}
	var said strings.Builder
	if table(&said, []*step{s, {name: "fine"}}) == nil || !strings.Contains(said.String(), "red: x") {
		t.Error(said.String())
	}
}

// Lost if this fails: a tier leaves out a test that has another name by now,
// or a crash test that nobody takes a turn for.
func TestNamedTestsExist(t *testing.T) {
	have := map[string]string{}
	err := filepath.WalkDir(filepath.Join("..", ".."), func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			return err
		}
		for _, d := range f.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				have[f.Name.Name] = filepath.Base(filepath.Dir(name))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Concat(needJava, crashTests) {
		if have[name] == "" {
			t.Errorf("there is no test %s", name)
		}
	}
	for _, p := range longest {
		if found, err := filepath.Glob(filepath.Join("..", "..", p, "*_test.go")); err != nil || len(found) == 0 {
			t.Errorf("there is no package %s with tests", p)
		}
	}
	if found, err := filepath.Glob(filepath.Join("..", "..", applicationsPackage, "*_test.go")); err != nil || len(found) == 0 {
		t.Errorf("there is no package %s with tests", applicationsPackage)
	}
	if ps, err := packages(t.Context()); err != nil || slices.Contains(ps, applicationsPackage) {
		t.Errorf("%s is in every tier: %v", applicationsPackage, err)
	}
	if !slices.ContainsFunc(fullSteps(), func(s *step) bool { return slices.Contains(s.argv, filepath.Base(applicationsPackage)) }) {
		t.Errorf("%s is in no tier", applicationsPackage)
	}
	for name, dir := range have {
		if dir == "chaos" && (strings.HasPrefix(name, "TestChaos") || name == "TestBadInput") && name != "TestChaosKill" && !slices.Contains(crashTests, name) {
			t.Errorf("crash test %s has no turn in CI", name)
		}
	}
}

// Lost if this fails: a test that -short leaves out is in neither `race` nor the
// `test` of .ci/run.
func TestSameUnderRace(t *testing.T) {
	same, err := sameUnderRace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]bool{
		"./transforms/mapping": true, "./pipeline/records": true, "./avro": true,
		"./pipeline/ingest": false, "./transforms/join": false, "./sources/postgres": false,
	} {
		if got := slices.Contains(same, p); got != want {
			t.Errorf("%s is left to race: %v, want %v", p, got, want)
		}
	}
	files, err := git(t.Context(), "grep", "--full-name", "-l", "testing[.]Short()", ":/*.go", ":!/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	// A helper that looks at -short has its name in moreWithoutShort.
	if files != "pipeline/internal/enginetest/bed.go" {
		t.Errorf("-short is looked at in %s", files)
	}
}

// Lost if this fails: a part that was red, or green on another tree, counts as
// green in `make full`; or a package with a red round as steady.
func TestRecords(t *testing.T) {
	file := filepath.Join(t.TempDir(), "full-green")
	for _, line := range []string{"t1\ttest\t10\tnow", "t2\trace\t5\tnow", "t1\tcut off"} {
		if err := appendLine(file, line); err != nil {
			t.Fatal(err)
		}
	}
	green, err := recorded(file, "t1")
	if err != nil || len(green) != 1 || green["test"] == "" {
		t.Errorf("%v %v", green, err)
	}
	if green, err := recorded(filepath.Join(t.TempDir(), "none"), "t1"); err != nil || len(green) != 0 {
		t.Errorf("%v %v", green, err)
	}

	b := built{pkg: "pipeline", sum: "now"}
	at := func(sum string, red ...string) round {
		return round{When: time.Unix(0, 0), Package: b.pkg, Binary: sum, Red: red, Seeds: []string{"CHAOS_SEED=7"}}
	}
	for name, c := range map[string]struct {
		rounds []round
		steady bool
	}{
		"too few":          {[]round{at("now"), at("old"), at("old")}, false},
		"red before":       {[]round{at("old", "TestA"), at("now"), at("now")}, true},
		"red with present": {[]round{at("now"), at("now", "TestA")}, false},
	} {
		var said strings.Builder
		if err := report(&said, c.rounds, []built{b}, 2); (err == nil) != c.steady {
			t.Errorf("%s: %v\n%s", name, err, said.String())
		}
		if name != "too few" && !strings.Contains(said.String(), "TestA; last 1970-01-01 00:00:00, tree , CHAOS_SEED=7") {
			t.Errorf("%s: %s", name, said.String())
		}
	}
	tallied, err := readTally(filepath.Join(t.TempDir(), "tally.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if err := tallied.add(at("now", "TestA")); err != nil {
		t.Fatal(err)
	}
	again, err := readTally(tallied.file)
	if err != nil || again.with(b) != 1 || again.rounds[0].Red[0] != "TestA" {
		t.Errorf("%+v %v", again, err)
	}
}

// Lost if this fails: what a fuzz target found counts as its time being over; or a
// target that found nothing is red, on whichever machine is busy.
func TestEndedAtItsTime(t *testing.T) {
	const end = "FAIL\nexit status 1\nFAIL\tpackage\t5.137s\n"
	for _, c := range []struct {
		out  string
		want bool
	}{
		{"fuzz: elapsed: 5s, execs: 11698 (3403/sec)\n--- FAIL: FuzzA (5.12s)\n    context deadline exceeded\n" + end, true},
		{"--- FAIL: FuzzA (5.12s)\n    --- FAIL: FuzzA (0.00s)\n        a_test.go:7: context deadline exceeded\n    \n    Failing input written to testdata/fuzz/FuzzA/582528ddfad69eb5\n" + end, false},
		{"--- FAIL: FuzzA (5.12s)\n    context deadline exceeded\n    Failing input written to testdata/fuzz/FuzzA/582528ddfad69eb5\n" + end, false},
		{"--- FAIL: FuzzA (5.12s)\n    fuzzing process hung or terminated unexpectedly: exit status 2\n" + end, false},
		{"--- FAIL: FuzzAB (5.12s)\n    context deadline exceeded\n" + end, false},
		{"# package\n./a_test.go:7:2: undefined: x\n" + end, false},
		{"", false},
	} {
		if got := endedAtItsTime(c.out, "FuzzA"); got != c.want {
			t.Errorf("%v for %q", got, c.out)
		}
	}
}
