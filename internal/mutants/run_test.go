package main

import (
	"errors"
	"regexp"
	"strings"
	"testing"
)

// A small module with a mutant for each way in which a run can end.
func TestRun(t *testing.T) {
	root := t.TempDir()
	writeFiles(t, root, map[string]string{
		"go.mod":     "module example.org/sum\n\ngo 1.24\n",
		"sum/sum.go": "package sum\n\nfunc Add(a, b int) int {\n\treturn a + b\n}\n\nfunc Unused() int { return 1 }\n",
		"sum/sum_test.go": `package sum

import (
	"os/exec"
	"testing"
)

func TestAdd(t *testing.T) {
	t.Run("small", func(t *testing.T) {
		if Add(1, 2) != 3 {
			t.Error("not 3")
		}
	})
}

func TestSkipped(t *testing.T) { t.Skip("no server") }

// What a test builds itself has the mutant in it, too.
func TestBuilds(t *testing.T) {
	out, err := exec.Command("go", "run", "../main").CombinedOutput()
	if err != nil || string(out) != "3" {
		t.Errorf("%v: %s", err, out)
	}
}
`,
		"main/main.go": "package main\n\nimport (\n\t\"fmt\"\n\n\t\"example.org/sum/sum\"\n)\n\nfunc main() { fmt.Print(sum.Add(1, 2)) }\n",
		"other/other_test.go": "package other\n\nimport (\n\t\"testing\"\n\n\t\"example.org/sum/sum\"\n)\n\n" +
			"func TestOther(t *testing.T) {\n\tif sum.Add(1, 2) != 3 {\n\t\tpanic(\"BUG: not 3\")\n\t}\n}\n",
	})
	minus := []edit{{in: "Add", find: "a + b", replace: "a - b"}}
	unused := []edit{{in: "Unused", find: "1", replace: "2"}}
	for _, c := range []struct {
		m    mutant
		line string // after "ok   NAME TIME: " or "FAIL NAME: "
	}{
		{mutant{name: "killed", test: "^TestAdd$", edits: minus}, `ok   killed [0-9.]+s: --- FAIL: TestAdd/small`},
		{mutant{name: "in-what-is-built", test: "^TestBuilds$", edits: minus}, `ok   in-what-is-built [0-9.]+s: --- FAIL: TestBuilds`},
		{mutant{name: "elsewhere", test: "^TestOther$", testPackage: "./other", edits: minus}, `ok   elsewhere [0-9.]+s: --- FAIL: TestOther`},
		{mutant{name: "survived", test: "^TestAdd$", edits: unused}, `FAIL survived: survived \^TestAdd\$ in \./sum`},
		{mutant{name: "does-not-build", test: "^TestAdd$", edits: []edit{{in: "Add", find: "a + b", replace: "c"}}}, `FAIL does-not-build: does not build: (?s).*undefined: c`},
		{mutant{name: "did-not-run", test: "^TestNone$", edits: minus}, `FAIL did-not-run: did not run: no test of \./sum matches \^TestNone\$`},
		{mutant{name: "part-did-not-run", test: "^TestAdd$/^large$", edits: minus}, `FAIL part-did-not-run: did not run: no test`},
		{mutant{name: "skipped", test: "^TestSkipped$", edits: minus}, `FAIL skipped: did not run: --- SKIP: TestSkipped`},
		{mutant{name: "no-tests", test: "^TestAdd$", testPackage: "./main", edits: minus}, `FAIL no-tests: did not run: \./main has no tests`},
		{mutant{name: "gone", test: "^TestAdd$", edits: []edit{{in: "Subtract", find: "a"}}}, `FAIL gone: mutant gone: package \./sum: there is no Subtract`},
	} {
		c.m.pkg = "./sum"
		if c.m.testPackage == "" {
			c.m.testPackage = "./sum"
		}
		var out strings.Builder
		r := runner{root: root, out: &out, clean: c.m.name == "killed" || c.m.name == "elsewhere"}
		failed, err := r.run(t.Context(), []*mutant{&c.m})
		if err != nil || (failed == 0) != strings.HasPrefix(c.line, "ok") || !regexp.MustCompile(`^`+c.line).MatchString(out.String()) {
			t.Errorf("%s: %v, %d failed:\n%s", c.m.name, err, failed, out.String())
		}
		if !regexp.MustCompile(`(?m)^1 mutants, [01] failed, \d+ s$`).MatchString(out.String()) {
			t.Errorf("%s: no closing line:\n%s", c.m.name, out.String())
		}
	}

	var out strings.Builder
	r := runner{root: root, out: &out, applyOnly: true}
	failed, err := r.run(t.Context(), []*mutant{
		{name: "fits", pkg: "./sum", testPackage: "./sum", test: "x", edits: minus},
		{name: "breaks", pkg: "./sum", testPackage: "./sum", test: "x", edits: []edit{{in: "Add", find: "a + b", replace: "c"}}},
	})
	if got := out.String(); err != nil || failed != 1 || !strings.Contains(got, "ok   fits") || !strings.Contains(got, "FAIL breaks: does not build") {
		t.Errorf("applying only: %v, %d failed:\n%s", err, failed, got)
	}
}

func TestJudge(t *testing.T) {
	bad := errors.New("exit status 2")
	for _, c := range []struct {
		out   string
		hung  bool
		hangs bool
		err   error
		red   string
		fails string
	}{
		{out: "=== RUN   TestX\n--- FAIL: TestX (0.1s)\n    --- FAIL: TestX/a (0.1s)\n", err: bad, red: "--- FAIL: TestX/a"},
		{out: "=== RUN   TestX\npanic: BUG: no\n", err: bad, red: "panic: BUG: no"},
		{out: "=== RUN   TestX\npanic: test timed out after 5m0s\n", hung: true, err: bad, fails: "hung, and nothing noticed"},
		{out: "=== RUN   TestX\n--- FAIL: TestX (0.1s)\npanic: test timed out after 5m0s\n", hung: true, err: bad, fails: "hung"},
		{out: "=== RUN   TestX\npanic: test timed out after 1m0s\n", hung: true, hangs: true, err: bad, red: "hangs"},
		{out: "=== RUN   TestX\n", err: bad, fails: "without a test that failed"},
		{out: "starting a server: no\n", err: bad, fails: "did not run"},
	} {
		m := &mutant{test: "TestX", hangs: c.hangs}
		red, err := m.judge(c.out, c.hung, c.err)
		if red != c.red || (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%q: %q, %v", c.out, red, err)
		}
	}
}
