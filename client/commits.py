"""What a member of a group commits: one request at a time, of all partitions that moved on."""

from typing import NamedTuple


class CommitPoint(NamedTuple):
    """How far a partition has been processed. What is not known of the record before is -1."""

    offset: int  # the next one to be read
    leader_epoch: int = -1  # of the record before ``offset``
    timestamp: int = -1  # its event time, ms since the epoch
    append_time: int = -1  # when it was appended, ms since the epoch
    assignment_epoch: int = -1  # of the assignment it was read under; -1: of the present one


class Committed(NamedTuple):
    """What a group has committed for a partition."""

    offset: int  # the next one to be read
    leader_epoch: int  # of the record before ``offset``, -1: not known
    timestamp: int  # its event time, ms since the epoch, -1: not known
    append_time: int  # when it was appended, ms since the epoch, -1: not known
    committed_at: int  # ms since the epoch
    metadata: str
