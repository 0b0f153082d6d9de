"""Fetch: whole batches below the high watermark, waiting for them if there are none.

- An answer holds at most ``bytes_max`` (bounded by ``limits.fetch_size``), and of one partition
  at most 1 MiB, but the first batch of the answer comes whole even if it is larger: else a reader
  could never pass it (KIP-74).
- Fewer than ``bytes_min`` bytes, no error, no limit reached, time left: the fetch parks, without a
  task, at its partitions and with the timers. The first of watermark, deadline and shutdown takes
  it up again.
- A sealed segment is verified once, in a worker thread, before its bytes are served (R24).
- Bytes are passed on as ranges of files; nothing is decoded or copied.
- A leader that does not know yet what is committed lets a reader wait, and says T037 in the end.
- A consumer that names its rack may be sent to a follower there, which serves what it knows to be
  committed (KIP-392). Followers' own fetches are another matter (``copying``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from tailrace.broker.call import Call
from tailrace.broker.limits import (
    FETCH_PARTITION_BYTES_MAX,
    FETCH_WAIT_MS_MAX,
    PARTITIONS_PER_REQUEST_MAX,
    check_count,
)
from tailrace.broker.node import Node
from tailrace.broker.partition import Partition
from tailrace.broker.timers import Timer
from tailrace.protocol import texts, texts_wire
from tailrace.protocol.errors import TailraceError, to_wire
from tailrace.protocol.messages import (
    READ_COMMITTED,
    READ_UNCOMMITTED,
    FetchPartition,
    FetchRequest,
    FetchResponse,
    FetchResult,
)
from tailrace.protocol.seams import FileRange
from tailrace.storage.log import LogSlice

LATE_S = 0.05  # how late a wake-up is where the simulation delays one


@dataclass(slots=True)
class Collected:
    """What one look at the partitions found."""

    results: list[FetchResult] = field(default_factory=list[FetchResult])
    slices: list[tuple[Partition, LogSlice]] = field(
        default_factory=list[tuple[Partition, LogSlice]]
    )
    length: int = 0
    full: bool = False  # a limit left something behind: waiting would bring nothing
    code: str = "ok"  # or the first error's
    unverified: list[tuple[Partition, int]] = field(default_factory=list[tuple[Partition, int]])

    def again(self) -> "Collected":
        """A copy to go on from."""
        return Collected(list(self.results), code=self.code)

    def refuse(self, wanted: FetchPartition, error: TailraceError) -> None:
        """The answer has an error, and does not wait for anything else."""
        if self.code == "ok":
            self.code = error.code
        self.hold_back(wanted, error)

    def hold_back(self, wanted: FetchPartition, error: TailraceError) -> None:
        """It is an error if nothing else becomes of it until the answer."""
        self.results.append(
            FetchResult(wanted.topic_id, wanted.partition, to_wire(error), -1, -1, -1, -1, 0)
        )


class Fetch:
    """One fetch request in hand. Parked or not, it is answered exactly once."""

    __slots__ = ("_call", "_deadline", "_node", "_request", "_timer", "_unreadable", "_working")

    def __init__(self, node: Node, call: Call, request: FetchRequest) -> None:
        self._node = node
        self._call = call
        self._request = request
        wait_ms = min(request.wait_ms, FETCH_WAIT_MS_MAX)
        self._deadline = node.timers.shared(wait_ms / 1000)
        self._timer: Timer | None = None  # set while parked
        self._working = False  # a task verifies a segment for us
        self._unreadable: dict[Partition, TailraceError] = {}  # where that failed

    def step(self, *, last: bool = False) -> None:
        """Answer, or verify what must be first, or park. ``last``: park no more."""
        last = last or self._node.state() == "draining"
        found = self._collect()
        if found.unverified:
            self._working = True
            self._unpark()
            self._call.spawn(partial(self._verify, found.unverified))
        elif last or found.code != "ok" or self._is_due(found):
            self._answer(found)
        elif self._timer is None:
            self._park()

    def _is_due(self, found: Collected) -> bool:
        enough = found.full or found.length >= self._request.bytes_min
        return enough or trio.current_time() >= self._deadline

    def wake(self) -> None:
        """A partition has more, or went offline."""
        if self._timer is None or self._working:
            return
        if self._node.world.maybe("fetch.late_wakeup", 0.05):
            self._node.timers.at(trio.current_time() + LATE_S, self._late)
        else:
            self.step()

    def finish(self) -> None:
        """Answer now with what there is: deadline or shutdown."""
        self.step(last=True)

    async def _verify(self, unverified: Sequence[tuple[Partition, int]]) -> None:
        for partition, offset in unverified:
            try:
                await partition.verify(offset, self._node.world.offload)
            except OSError as error:
                self._unreadable[partition] = partition.unreadable(error)
        self._working = False
        self.step()

    def _late(self) -> None:
        if self._timer is not None and not self._working:
            self.step()
            self._node.outbox.flush()

    def _expire(self) -> None:
        self.finish()
        self._node.outbox.flush()

    def _park(self) -> None:
        self._timer = self._node.timers.at(self._deadline, self._expire)
        self._node.parked[self] = None
        for wanted in self._request.partitions:
            self._partition(wanted).park(self)

    def _unpark(self) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        self._node.parked.pop(self, None)
        for wanted in self._request.partitions:
            partition = self._node.shelf.get(wanted.topic_id, wanted.partition)
            if partition is not None:
                partition.unpark(self)

    def abandon(self) -> None:
        """The connection is gone."""
        self._unpark()

    def _answer(self, found: Collected) -> None:
        self._unpark()
        ranges: list[FileRange] = []
        for partition, piece in found.slices:
            partition.metrics.bytes_out.inc(piece.length)
            ranges.extend(piece.ranges)
        response = FetchResponse(tuple(found.results))
        self._call.answer(response, ranges, found.length, found.code)

    def _collect(self) -> Collected:
        found = Collected()
        bytes_max = min(self._request.bytes_max, self._node.config.limits.fetch_size_bytes)
        if self._node.world.maybe("fetch.tiny", 0.05):
            bytes_max = 1
        for wanted in self._request.partitions:
            try:
                self._read(wanted, bytes_max, found)
            except TailraceError as error:
                found.refuse(wanted, error)
            except OSError as error:  # a file that cannot be opened or read just now
                found.refuse(wanted, self._partition(wanted).unreadable(error))
        return found

    def _partition(self, wanted: FetchPartition) -> Partition:
        """The one this broker leads; or its copy, if the consumer may read that."""
        shelf = self._node.shelf
        if self._request.rack is not None:
            copy = shelf.get(wanted.topic_id, wanted.partition)
            if copy is not None and copy.role == "follower":
                return copy
        return shelf.find(wanted.topic_id, wanted.partition)

    def _read(self, wanted: FetchPartition, bytes_max: int, found: Collected) -> None:
        partition = self._partition(wanted)
        self._node.session.check()  # others may lead by now, and have more (R14, R15)
        _check_epoch(partition, wanted)
        high_watermark = partition.shown_high_watermark
        if high_watermark is None:
            found.hold_back(wanted, partition.offset_not_available())
            return
        if self._request.rack is not None and self._send_elsewhere(partition, wanted, found):
            return
        if partition.log.verify_pending(wanted.offset) is not None:
            if partition in self._unreadable:
                raise self._unreadable[partition]
            found.unverified.append((partition, wanted.offset))
            return
        left = min(bytes_max - found.length, wanted.bytes_max, FETCH_PARTITION_BYTES_MAX)
        piece = partition.read(wanted.offset, max(left, 0))
        # Only the first batch of an answer may be larger than asked for.
        length = 0 if piece.length > left and found.length else piece.length
        if length:
            found.slices.append((partition, piece))
            found.length += length
        found.full |= (piece.next_offset if length else wanted.offset) < high_watermark
        found.results.append(
            FetchResult(
                wanted.topic_id,
                wanted.partition,
                None,
                partition.log.start,
                high_watermark,
                high_watermark,
                partition.log.end,
                length,
            )
        )

    def _send_elsewhere(
        self, partition: Partition, wanted: FetchPartition, found: Collected
    ) -> bool:
        """Name a follower near the consumer, if there is one that has what is wanted."""
        if partition.role != "leader":
            return False
        near = nearest(self._node, partition, self._request.rack, wanted.offset)
        if near is None:
            return False
        where = partition.log.start, partition.high_watermark
        found.results.append(
            FetchResult(
                *(wanted.topic_id, wanted.partition, None, where[0], where[1], where[1]),
                *(partition.log.end, 0),
                preferred_replica=near,
            )
        )
        found.full = True  # the consumer has something to do
        return True


def nearest(node: Node, partition: Partition, rack: str | None, offset: int) -> str | None:
    """A live follower of the ISR in a rack that holds the record at an offset, or is at it.

    None: the leader is in that rack itself, or there is no such follower.
    """
    brokers = node.views.view.brokers
    racks = {one: brokers[one].rack for one in partition.leadership.isr if one in brokers}
    if rack is None or racks.get(node.broker_id) == rack:
        return None
    followers = partition.replica.followers
    there = [
        one
        for one, its_rack in racks.items()
        if its_rack == rack and one in followers and followers[one].end >= offset
    ]
    return min(there, default=None)


def check_isolation(isolation: int) -> None:
    """Both kinds read up to the high watermark, as long as there are no transactions."""
    if isolation not in (READ_UNCOMMITTED, READ_COMMITTED):
        raise texts_wire.malformed_frame(f"isolation {isolation} is neither 0 nor 1")


def _check_epoch(partition: Partition, wanted: FetchPartition) -> None:
    """A reader that knows another epoch looks at the metadata again (R2)."""
    current = partition.leadership.leader_epoch
    if wanted.leader_epoch not in (-1, current):
        raise texts.epoch_fenced(
            partition.topic, partition.number, yours=wanted.leader_epoch, current=current
        )


def fetch_records(node: Node, call: Call, request: FetchRequest) -> None:
    """A consumer's: answer at once if there is enough, else when there is."""
    for_followers = (-1, -1, -1, -1)
    for one in request.partitions:
        told = (one.last_fetched_epoch, one.flushed_end, one.high_watermark, one.cleaned)
        if told != for_followers:
            raise texts_wire.malformed_frame("a consumer has nothing that is a follower's to tell")
    if request.broker_epoch != -1:
        raise texts_wire.malformed_frame("a consumer has no broker_epoch")
    check_isolation(request.isolation)
    check_count(len(request.partitions), PARTITIONS_PER_REQUEST_MAX, of="partitions")
    pending = Fetch(node, call, request)
    call.abandoned = pending.abandon
    pending.step()
