// Static members of consumer groups: what a client of ours does not do by
// itself for them.

package kafka

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
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
