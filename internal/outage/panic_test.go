package outage

import (
	"errors"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/problem"
)

// A bug in one component would end all of them.
func TestGuard(t *testing.T) {
	err := Guard(func() error { panic("BUG: of a test") })
	var p *Panic
	if !problem.Has(err, ErrPanic) || !errors.As(err, &p) || Classify(err) != problem.Halt {
		t.Fatalf("%v", err)
	}
	if !strings.Contains(p.Stack, "TestGuard") || !strings.Contains(err.Error(), "BUG: of a test") {
		t.Errorf("%v\n%s", err, p.Stack)
	}
	if strings.Contains(err.Error(), "TestGuard") {
		t.Error("the stack is in the text, which is shown on a page")
	}
	plain := errors.New("plain")
	if err := Guard(func() error { return plain }); err != plain { //nolint:errorlint // it is to be the same
		t.Errorf("%v", err)
	}
}
