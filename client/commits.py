"""What a member of a group commits: one request at a time, of all partitions that moved on.

Above 1,000 partitions it takes several, one after the other: no request may name more.

Invariants:
- a commit carries the epoch of the assignment under which its records were read: after the
  partition went to somebody else, it is refused (S23);
- what goes out by itself only rises (S24); what is known to be committed is not sent again;
- the next commit leaves when the one before it is answered, however many wait.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import anyio

from tailrace.client.coordinator import Coordinator
from tailrace.client.membership import Assignment, Place
from tailrace.protocol import texts_client, texts_config
from tailrace.protocol.errors import TailraceError, from_wire
from tailrace.protocol.limits import PARTITIONS_PER_REQUEST_MAX, pieces
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    CommitOffsetsResponse,
    CommitPartition,
    FetchOffsetsRequest,
    FetchOffsetsResponse,
    OwnedPartitions,
)
from tailrace.protocol.messages_group import METADATA_BYTES_MAX
from tailrace.protocol.shapes import TopicPartition

if TYPE_CHECKING:
    from tailrace.client.client import Client

CALL = "consumer.commit()"


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


@dataclass(slots=True)
class Outcome:
    """What became of one commit."""

    stored: dict[Assignment, int] = field(default_factory=dict[Assignment, int])
    refused: list[Assignment] = field(default_factory=list[Assignment])  # somebody else's (T042)
    reason: str = ""  # why they were refused
    error: TailraceError | None = None  # the first one of another kind


Points = Mapping[Assignment, CommitPoint]


class Ledger:
    """What is known to be committed of the assignments a member has."""

    def __init__(self) -> None:
        self._stored: dict[Assignment, int] = {}

    def due(self, points: Points) -> dict[Assignment, CommitPoint]:
        """Those that are further than what is committed."""
        return {
            assignment: point
            for assignment, point in points.items()
            if point.offset > self.known(assignment)
        }

    def stored(self, assignment: Assignment, offset: int) -> None:
        """So far, at least."""
        self._stored[assignment] = max(offset, self.known(assignment))

    def known(self, assignment: Assignment) -> int:
        """What is committed of it, -1: nothing was since it was assigned."""
        return self._stored.get(assignment, -1)

    def forget(self, assignment: Assignment) -> None:
        """It is not the member's any more."""
        self._stored.pop(assignment, None)


class Commits:
    """Of one member."""

    def __init__(self, client: "Client", coordinator: Coordinator, member_id: str) -> None:
        self.ledger = Ledger()
        self.last: int | None = None  # when something was stored, ms since the epoch
        self._client = client
        self._coordinator = coordinator
        self._member_id = member_id
        self._turn = anyio.Lock()

    async def store(
        self, points: Points, metadata: str = "", *, only_due: bool = True, timeout: float
    ) -> Outcome:
        """Store these, after the commit that is under way; durable on return.

        ``only_due``: without what is committed already by then. Raises RequestTimeout T034 after
        ``timeout`` seconds, ConnectError T005, and what the coordinator refuses as a whole: of
        more than 1,000 some may be stored then. Cancelled: they may be stored.
        """
        clock = self._client.clock
        began = clock.now()
        entered = False
        with anyio.move_on_after(timeout):
            await self._turn.acquire()
            entered = True
        if not entered:
            where = f"the coordinator of group '{self._coordinator.group}'"
            raise texts_client.request_timeout(
                "commit offsets", address=where, waited_s=clock.now() - began
            )
        try:
            chosen = self.ledger.due(points) if only_due else dict(points)
            if not chosen:
                return Outcome()
            outcome = Outcome()
            for piece in pieces(list(chosen.items()), PARTITIONS_PER_REQUEST_MAX):
                left_s = max(0.001, timeout - (clock.now() - began))
                await self._ask(dict(piece), metadata, left_s, outcome)
            return outcome
        finally:
            self._turn.release()

    async def _ask(
        self,
        points: dict[Assignment, CommitPoint],
        metadata: str,
        timeout: float,
        outcome: Outcome,
    ) -> None:
        """One request; what became of it goes into ``outcome``."""
        request = CommitOffsetsRequest(
            self._coordinator.group,
            self._member_id,
            tuple(_wire(assignment, point, metadata) for assignment, point in points.items()),
        )
        try:
            response = await self._coordinator.request(request, timeout=timeout)
        except TailraceError as error:
            if error.code != "T042":
                raise
            outcome.refused += points
            outcome.reason = outcome.reason or error.message
            return
        assert isinstance(response, CommitOffsetsResponse)
        for assignment, result in zip(points, response.results, strict=True):
            if result.error is None:
                outcome.stored[assignment] = result.offset
                self.ledger.stored(assignment, result.offset)
                continue
            refusal = from_wire(result.error)
            if refusal.code == "T042":
                outcome.refused.append(assignment)
                outcome.reason = outcome.reason or refusal.message
            else:
                outcome.error = outcome.error or refusal
        if outcome.stored:
            self.last = self._client.clock.wall_ms()


async def fetch_committed(
    coordinator: Coordinator, places: Mapping[TopicPartition, bytes], *, timeout: float
) -> dict[TopicPartition, Committed | None]:
    """What a group has committed of partitions (values: topic ids), None: nothing.

    Waits while the coordinator loads, and through outages: RequestTimeout T034 after ``timeout``
    seconds, for each 1,000 partitions, ConnectError T005.
    """
    found: dict[Place, Committed | None] = {}
    for piece in pieces(list(places.items()), PARTITIONS_PER_REQUEST_MAX):
        request = FetchOffsetsRequest(coordinator.group, _by_topic(dict(piece)))
        response = await coordinator.request(request, timeout=timeout)
        assert isinstance(response, FetchOffsetsResponse)
        for one in response.offsets:
            if one.offset >= 0:
                found[one.topic_id, one.partition] = Committed(
                    one.offset,
                    one.leader_epoch,
                    one.timestamp,
                    one.append_time,
                    one.committed_at,
                    one.metadata,
                )
    return {at: found.get((topic_id, at.partition)) for at, topic_id in places.items()}


def check_metadata(metadata: str) -> None:
    """ConfigError T082 above 4,096 bytes."""
    size = len(metadata.encode(errors="surrogatepass"))
    if size > METADATA_BYTES_MAX:
        raise texts_config.bad_argument(
            "metadata",
            metadata[:20] + "...",
            call=CALL,
            expected=f"at most {METADATA_BYTES_MAX:,} bytes, not {size:,}",
            hint="Store the blob elsewhere, and its name here.",
        )


def lowered(at: TopicPartition, offset: int, committed: int, group: str) -> TailraceError:
    """T082: an explicit commit below what is committed."""
    return texts_config.bad_argument(
        "offsets",
        {(at.topic, at.partition): offset},
        call=CALL,
        expected=f"at least {committed:,}, which is committed already",
        hint=f"To read again: seek(), or without members: tailrace group reset {group}",
    )


def _by_topic(places: Mapping[TopicPartition, bytes]) -> tuple[OwnedPartitions, ...]:
    topics: dict[bytes, list[int]] = {}
    for at, topic_id in places.items():
        topics.setdefault(topic_id, []).append(at.partition)
    return tuple(OwnedPartitions(topic, tuple(asked)) for topic, asked in topics.items())


def _wire(assignment: Assignment, point: CommitPoint, metadata: str) -> CommitPartition:
    return CommitPartition(
        topic_id=assignment.topic_id,
        partition=assignment.partition,
        offset=point.offset,
        leader_epoch=point.leader_epoch,
        timestamp=point.timestamp,
        append_time=point.append_time,
        assignment_epoch=assignment.assignment_epoch,
        metadata=metadata,
    )
