// Package removal is what a component leaves behind in other systems, thing by
// thing, and how each is taken away when the component is given up.
package removal

import "context"

// Thing is one thing that a component has made somewhere.
type Thing struct {
	// What it is, with its name: `slot "tallywire_psa"`.
	What string
	// Holds says how much it holds, where that is known.
	Holds string
	// Gone: it is not there, or not any more.
	Gone bool
	// Stays says why it is left where it is; "": it is to go.
	Stays string
	// Run is what somebody else runs to take away what stays; "": nothing.
	Run string
	// Remove takes it away, and is content when it is gone. nil: it is gone, or stays.
	Remove func(ctx context.Context) error
	// Minor: nothing depends on it, so that it may stay where it cannot be removed.
	Minor bool
}
