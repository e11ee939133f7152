// Package state is what transforms keep in Redis, and how its loss is noticed.
//
// A Store is what one transform keeps of one topic. Everything of it lies under
// "tw:{<transform>}:<topic id>:", so that a topic that was deleted and created
// again starts with nothing; the braces keep it in one slot of a cluster.
//
// Per partition there is a mark, "<epoch>:<phase>:<offset>:<run>":
//
//   - offset: all records below it are applied, in order. It is written in one
//     MULTI with the values, after WATCH and a comparison of the whole mark
//     with the one that this owner left. So values and mark appear together,
//     or not at all, and a process that lost the partition writes nothing.
//   - phase: 'a' applied, or 'r' while a rebuild runs, when nobody may read.
//   - epoch: the Shape, a dot, and a random name given by each rebuild. A
//     reader compares it before and after, and so notices a loss and a rebuild
//     in the midst of reading.
//   - run: the server's run_id when the owner last confirmed the mark. After a
//     restart or a failover the run is another one; what is there may then be
//     an older copy, and until the owner has compared it with the committed
//     offset no reader believes it. Without this, a reader that starts beside
//     a rolled-back Redis takes 'not there' for 'missing', and since a rebuild
//     emits nothing, nothing would ever correct what it emitted.
//
// A mark below the committed offset, or none, means loss (invariant 6): the
// partition is emptied and rebuilt from the beginning of the compacted topic.
// Going on from the older offset would keep keys whose tombstones were
// compacted away meanwhile.
//
// A mark above the committed offset is what an aborted transaction leaves. The
// records come again; those below the mark are already in, so they are not
// written again (Apply), and values never go back in time. They are judged
// and emitted all the same: a replay always emits.
//
// Values need no version of their own: the mark admits one writer, and that
// one applies records in the order of their offsets, each at most once per
// epoch; so the last write is the highest version, and a delete may delete.
//
// Who has the partition writes with Apply; others read with a ConsistentRead.
package state
