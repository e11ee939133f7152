package problem

import (
	"errors"
	"fmt"
	"testing"
)

// A cause that is not seen because something is wrapped around it is decided
// about wrongly: a process that was fenced would try again.
func TestHasSeesTheWholeChain(t *testing.T) {
	inner := Define("TW-TEST-INNER", Halt, "Inner.", "Wait.")
	outer := Define("TW-TEST-OUTER", Retry, "Outer.", "Wait.")
	err := fmt.Errorf("doing: %w", outer.New("around: %w", inner.New("within")))
	for _, c := range []Code{inner, outer} {
		if !Has(err, c) {
			t.Errorf("%v has no %s", err, c.ID)
		}
	}
	if Has(err, Define("TW-TEST-OTHER", Halt, "Other.", "Wait.")) || Has(errors.New("plain"), inner) || Has(nil, inner) {
		t.Error("a code is seen that is not there")
	}
	if e := Of(err); e.Class != Retry {
		t.Errorf("the class is %v, want that of the outermost", e.Class)
	}
}
