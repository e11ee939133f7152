// Static members of consumer groups: what a client of ours does not do by
// itself for them.

package kafka

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/change"
)

// LeaveGroup gives up the place of a static member, which kgo's Close keeps.
// With a member id it does so only while that incarnation holds the place
// (else FENCED_INSTANCE_ID); "" means whichever does. A member that is not
// there is no error. Errors are those of Kafka, as they are.
func (c *Cluster) LeaveGroup(ctx context.Context, group, instance, member string) error {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = group
	m := kmsg.NewLeaveGroupRequestMember()
	m.InstanceID, m.MemberID = &instance, member
	m.Reason = kmsg.StringPtr("stopping")
	req.Members = append(req.Members, m)
	resp, err := req.RequestWith(ctx, c.shared)
	if err != nil {
		return err
	}
	if err = kerr.ErrorForCode(resp.ErrorCode); err == nil && len(resp.Members) == 1 {
		err = kerr.ErrorForCode(resp.Members[0].ErrorCode)
	}
	if errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.GroupIDNotFound) {
		return nil
	}
	return err
}

// Heartbeat asks what the group thinks of a static member: nil, or
// REBALANCE_IN_PROGRESS, UNKNOWN_MEMBER_ID, ILLEGAL_GENERATION, or
// FENCED_INSTANCE_ID when another incarnation holds its place.
func (c *Cluster) Heartbeat(ctx context.Context, group, instance, member string, generation int32) error {
	req := kmsg.NewPtrHeartbeatRequest()
	req.Group, req.InstanceID, req.MemberID, req.Generation = group, &instance, member, generation
	resp, err := req.RequestWith(ctx, c.shared)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.ErrorCode)
}

// Offset is one that a group commits: the next record to be read.
type Offset struct {
	Topic     *change.Topic
	Partition int32
	At        int64
	Metadata  string
}

// TransactionsV2 reports whether the cluster's transactions are those of
// KIP-890, in which a commit of offsets joins the transaction by itself.
func (c *Cluster) TransactionsV2(ctx context.Context) (bool, error) {
	resp, err := kmsg.NewPtrApiVersionsRequest().RequestWith(ctx, c.shared)
	if err != nil {
		return false, Wrap(err, "asking for the versions of the broker")
	}
	for _, f := range resp.FinalizedFeatures {
		if f.Name == "transaction.version" {
			return f.MaxVersionLevel >= 2, nil
		}
	}
	return false, nil
}

// CommitInTransaction makes offsets part of the transaction that cl, a producer
// with transactional id id, has open and has produced in. The group takes them
// from its member alone: from another, or an older generation, they are refused
// (FENCED_INSTANCE_ID, UNKNOWN_MEMBER_ID, ILLEGAL_GENERATION). Errors are those
// of Kafka, as they are; after one the transaction is to be aborted.
func CommitInTransaction(ctx context.Context, cl *kgo.Client, id string, v2 bool, member GroupMember, offsets []Offset) error {
	pid, epoch, err := cl.ProducerID(ctx)
	if err != nil {
		return err
	}
	if !v2 {
		add := kmsg.NewPtrAddOffsetsToTxnRequest()
		add.TransactionalID, add.ProducerID, add.ProducerEpoch, add.Group = id, pid, epoch, member.Group
		resp, err := add.RequestWith(ctx, cl)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err != nil {
			return err
		}
	}
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Group = id, pid, epoch, member.Group
	req.MemberID, req.Generation, req.InstanceID = member.ID, member.Generation, &member.Instance
	at := map[string]int{}
	for i := range offsets {
		o := &offsets[i]
		j, is := at[o.Topic.Name]
		if !is {
			j = len(req.Topics)
			at[o.Topic.Name] = j
			t := kmsg.NewTxnOffsetCommitRequestTopic()
			t.Topic, t.TopicID = o.Topic.Name, o.Topic.ID
			req.Topics = append(req.Topics, t)
		}
		p := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset, p.Metadata = o.Partition, o.At, &o.Metadata
		req.Topics[j].Partitions = append(req.Topics[j].Partitions, p)
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return err
			}
		}
	}
	return nil
}

// GroupMember is a static member as it is now.
type GroupMember struct {
	Group, Instance, ID string
	Generation          int32
}
