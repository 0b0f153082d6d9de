"""Answers about moving leaders and copies, as the shapes that users see (pure)."""

from collections.abc import Sequence

from tailrace.protocol import messages
from tailrace.protocol.errors import from_wire
from tailrace.protocol.shapes import TopicPartition
from tailrace.protocol.shapes_cluster import DrainStatus, LeaderChange, ReplicaMove


def leader_changes(moves: Sequence[messages.LeaderMove]) -> list[LeaderChange]:
    """What an election did or would do."""
    return [
        LeaderChange(
            topic=one.topic,
            partition=one.partition,
            before=one.before,
            after=one.after,
            leader_epoch=one.leader_epoch,
            log_end=None if one.log_end < 0 else one.log_end,
            missing=list(one.missing),
            error=None if one.error is None else str(from_wire(one.error)),
        )
        for one in moves
    ]


def confirmations(changes: Sequence[LeaderChange]) -> tuple[messages.ConfirmedLeader, ...]:
    """Of what a dry run told: the elections, as they are said yes to."""
    return tuple(
        messages.ConfirmedLeader(
            topic=one.topic,
            partition=one.partition,
            leader=one.after,
            leader_epoch=one.leader_epoch,
            log_end=-1 if one.log_end is None else one.log_end,
        )
        for one in changes
        if one.after is not None
    )


def replica_moves(moves: Sequence[messages.ReplicaMove]) -> list[ReplicaMove]:
    """Which copies go where."""
    return [
        ReplicaMove(
            *(one.topic, one.partition),
            *(list(one.before), list(one.after), list(one.filling), list(one.down)),
        )
        for one in moves
    ]


def drain_status(answer: messages.DrainBrokerResponse) -> DrainStatus:
    """How far it is."""
    return DrainStatus(
        broker=answer.broker_id,
        draining=answer.draining,
        done=answer.draining and not answer.holds,
        leads=answer.leads,
        holds=answer.holds,
        moves=replica_moves(answer.moves),
        stuck=[
            TopicPartition(one.topic, one.partition)
            for one in answer.stuck
            if one.partition is not None
        ],
    )
