// The end of a transaction, with what the client leaves out of it.

package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Commit commits the transaction of cl, whose records are all acknowledged and
// whose promises were looked at (A3). On an error its outcome is unknown (A1).
func Commit(ctx context.Context, cl *kgo.Client) error {
	if err := AwaitKnown(ctx, cl); err != nil {
		return err
	}
	return cl.EndTransaction(ctx, kgo.TryCommit)
}

// AwaitKnown waits until cl knows of every partition that its transaction wrote to;
// all records are acknowledged. It comes before each commit (A12): Commit does
// it, and who commits by a kgo.GroupTransactSession calls it before End.
//
// The records of a topic that is new to the client are sent while the client
// holds the lock of such topics, and the partitions are kept before it is let
// go. So whoever takes the lock after an acknowledgement sees them, and this
// takes it: it is all that aborting does when nothing is buffered.
func AwaitKnown(ctx context.Context, cl *kgo.Client) error {
	return Wrap(cl.AbortBufferedRecords(ctx), "waiting until what was written is known")
}
