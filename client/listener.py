"""What a membership of a group is asked for, and what it tells: the two sides of ``member.py``.

Invariants:
- the listener is called on the client's event loop, in the order in which things happened;
- ``assigned`` never names a partition that the listener still has: it was released or lost first;
- every partition that was assigned ends by ``withdrawn`` and then ``released``, by ``lost``, or
  with the membership (``Member.leave``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tailrace.client.commits import CommitPoint
from tailrace.client.membership import Assignment
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import Rebalance
from tailrace.protocol.shapes import TopicPartition


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

    def status_changed(self) -> None:
        """``Member.rebalancing`` may be another than it was."""
        ...

    def failed(self, error: TailraceError) -> None:
        """It is no member any more, for good: T042 (another has its instance id), T070, T082 …

        What it had was ``lost`` before.
        """
        ...
