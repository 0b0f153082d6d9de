"""A consumer's membership of a group: what ``Feed`` sees of heartbeats, assignments and commits.

Invariants:
- the listener is called on the client's event loop, in the order in which things happened;
- ``assigned`` never names a partition that the listener still has: it was released or lost first;
- every partition that was assigned ends by ``withdrawn`` and then ``released``, or by ``lost``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from tailrace.client.commits import CommitPoint, Committed
from tailrace.client.membership import Assignment
from tailrace.client.records import TopicPartition
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages_group import Rebalance

if TYPE_CHECKING:
    from tailrace.client.client import Client


@dataclass(frozen=True, slots=True)
class MemberOptions:
    """Durations in seconds."""

    group: str
    topics: tuple[str, ...]
    session_timeout: float = 10.0
    rebalance_timeout: float = 30.0
    heartbeat: Literal["thread", "task"] = "thread"
    instance_id: str | None = None
    commit_interval: float | None = 1.0  # how often ``committable`` is asked; 0, None: never
    close_timeout: float = 10.0


class Listener(Protocol):
    """What ``Feed`` does. Every call is synchronous, short, on the event loop, and may not fail."""

    def assigned(self, partitions: Sequence[Assignment]) -> None:
        """Read these from now on: from what is committed, else by ``start`` (C15)."""
        ...

    def withdrawn(self, partitions: Sequence[TopicPartition]) -> None:
        """Hand out nothing more of these, then call ``Member.released`` for each of them.

        That may be at once, or when the record in hand is done. After ``rebalance_timeout``
        seconds it is too late: ``lost`` is called instead.
        """
        ...

    def lost(self, partitions: Sequence[TopicPartition], reason: str) -> None:
        """These belong to somebody else already; nothing of them can be committed any more.

        ``reason`` completes "... before its offsets were committed: {reason}" (T040).
        """
        ...

    def committable(self) -> Mapping[TopicPartition, CommitPoint]:
        """How far every partition it has is processed (``commit="manual"``: empty).

        Asked every ``commit_interval``, when a partition is given up, and at the end. Partitions
        of which nothing was processed since they were assigned may be left out.
        """
        ...

    def rebalanced(self, rebalance: Rebalance) -> None:
        """A rebalance of the group has ended (C14)."""
        ...

    def idle(self, partitions: int, members: int) -> None:
        """The group is stable and this member has nothing: T071, once until that changes."""
        ...

    def failed(self, error: TailraceError) -> None:
        """It is no member any more, for good: T042 (another has its instance id), T070, T082 …

        What it had was ``lost`` before.
        """
        ...


class Member:
    """See the module. ``join`` first, ``leave`` last; after that it may join again."""

    def __init__(self, client: "Client", options: MemberOptions, listener: Listener) -> None:
        self.options = options
        self.member_id = ""  # a UUID as text
        self.last_commit: int | None = None  # ms since the epoch
        self.rebalancing = False  # partitions of the group are on their way
        self.trouble: str | None = None  # why the coordinator cannot be reached, if so
        self.assignments: dict[TopicPartition, Assignment] = {}  # not lost, not released

    async def join(self) -> None:
        """Become a member; returns after the first answer, ``assigned`` may have been called.

        Raises GroupConfigMismatch T070, ConfigError T082 (a timeout outside the broker's limits,
        too many members), InvalidName T013, RequestTimeout T034 after ``request_timeout``,
        ConnectError T005. Cancelled: it is no member.
        """
        raise NotImplementedError

    def released(self, at: TopicPartition) -> None:
        """Nothing of a withdrawn partition is in hand any more.

        What ``committable`` says of it now is committed, then it is given up; both go on in the
        background. A partition that is not withdrawn (any more) is passed over.
        """
        raise NotImplementedError

    async def commit(
        self, points: Mapping[TopicPartition, CommitPoint], metadata: str = "", *, lower: bool
    ) -> None:
        """Store these, all in one request; returns when they are durable.

        ``lower``: whether a point below what is committed already is an error (ConfigError T082);
        else it is passed over. Raises PartitionLost T040 for partitions that went away (once, then
        UsageError T055: not assigned), ConfigError T082 for ``metadata`` above 4,096 bytes,
        RequestTimeout T034 after ``request_timeout``. Cancelled: they may be stored.
        """
        raise NotImplementedError

    async def committed(
        self, partitions: Iterable[TopicPartition], *, timeout: float
    ) -> dict[TopicPartition, Committed | None]:
        """What the group has committed, None: nothing. Waits while the coordinator loads.

        Raises RequestTimeout T034 after ``timeout`` seconds (``math.inf``: waits through every
        outage), ConnectError T005.
        """
        raise NotImplementedError

    async def leave(self) -> None:
        """Commit what is ``committable``, and go; within ``close_timeout``. Safe to call again.

        The leave is sent at once, so that others have the partitions within milliseconds; with an
        instance id the partitions wait for its return instead, for ``session_timeout``. Never
        raises for a broker that does not answer: what could not be committed is logged at ERROR.
        Cancelled: 2 s more, shielded.
        """
        raise NotImplementedError
