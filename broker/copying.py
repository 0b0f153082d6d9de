"""What followers fetch: everything up to the log's end, and what they have by then (R1-R3).

A follower asks over one connection, one request after another; one that comes while the last one
waits ends that. Each names only what has changed since the one before: so hundreds of quiet
partitions cost nothing, and a busy one costs the same whether it has company or not. What was asked
stands until it is answered with batches or an error; then it has to be named again.

- Each partition named is checked first (R2): who asks in which epochs, and whether its log is the
  beginning of this one. Then what the follower holds counts, and the high watermark may rise.
- The answer tells of partitions of which there is news: batches, an error, a divergence; and by the
  way another log start, watermark or ``cleaned_min``. These alone are worth an answer after
  ``NEWS_S``: mostly there are batches by then to go with them.
- Without news the request waits for the next append, without a task. Whoever appends only notes
  the partition down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from tailrace.broker.call import Call
from tailrace.broker.fetch import fetch_records, refused
from tailrace.broker.limits import (
    FETCH_PARTITION_BYTES_MAX,
    FETCH_WAIT_MS_MAX,
    FETCHES_OWED_MAX,
    PARTITIONS_PER_REQUEST_MAX,
    check_count,
)
from tailrace.broker.node import Node
from tailrace.broker.partition import Partition
from tailrace.broker.timers import Timer
from tailrace.protocol import texts_wire
from tailrace.protocol.errors import ConnectError, EpochFenced, TailraceError
from tailrace.protocol.messages import FetchPartition, FetchRequest, FetchResponse, FetchResult
from tailrace.protocol.seams import FileRange
from tailrace.storage.log import LogSlice

UNTOLD = -1  # the follower is to be told with the next answer
NEWS_S = 0.05  # how long a watermark alone may wait for batches to go with it


@dataclass(slots=True)
class Collected:
    """What one look at the partitions found."""

    results: list[FetchResult] = field(default_factory=list[FetchResult])
    slices: list[tuple[Partition, LogSlice]] = field(
        default_factory=list[tuple[Partition, LogSlice]]
    )
    length: int = 0
    code: str = "ok"  # or the first error's
    unverified: list[tuple[Partition, int]] = field(default_factory=list[tuple[Partition, int]])

    def again(self) -> "Collected":
        """A copy to go on from."""
        return Collected(list(self.results), code=self.code)

    def refuse(self, wanted: FetchPartition, error: TailraceError) -> None:
        """The answer has an error, and does not wait for anything else."""
        if self.code == "ok":
            self.code = error.code
        self.results.append(refused(wanted, error))


class CopierSession:
    """One connection of a follower, from a request with sequence 0 on.

    Invariants: it is parked at exactly the partitions in ``_asked``; of those in neither ``_due``
    nor ``_late`` there is no news; a request in hand (``_call``) is answered once.
    """

    def __init__(self, node: Node, broker_id: str, broker_epoch: int) -> None:
        self.broker_id = broker_id
        self.broker_epoch = broker_epoch
        self._node = node
        self._sequence = -1  # of the last request
        self._asked: dict[Partition, FetchPartition] = {}
        self._due: dict[Partition, None] = {}  # to be looked at
        self._late: dict[Partition, None] = {}  # there is a little news
        # To be asked for anew; the last request that may have left before that was heard.
        self._contradicted: dict[Partition, int] = {}
        self._settled = Collected()  # of the request in hand: what needs no second look
        self._call: Call | None = None
        self._bytes_max = 0
        self._deadline = 0.0
        self._timer: Timer | None = None
        self._working = False  # a task verifies a segment for us
        self._unreadable: dict[Partition, TailraceError] = {}  # where that failed

    def take(self, call: Call, request: FetchRequest) -> None:
        """Check and count everything, then answer or wait."""
        if request.sequence != self._sequence + 1:
            raise texts_wire.malformed_frame("a follower's requests come one after another")
        self.finish()  # the one before: there is something new to be told
        self._sequence = request.sequence
        self._call, call.abandoned = call, self.close
        self._settled = Collected()
        self._unreadable.clear()
        self._bytes_max = min(request.bytes_max, self._node.config.limits.fetch_size_bytes)
        now = trio.current_time()
        self._deadline = now + min(request.wait_ms, FETCH_WAIT_MS_MAX) / 1000
        for asked in request.partitions:
            try:
                self._admit(asked, now)
            except ConnectError:
                raise
            except TailraceError as error:
                if isinstance(error, EpochFenced):
                    self._node.views.refresh()  # one of us does not know the latest epoch
                self._settled.refuse(asked, error)
        self.step()

    def close(self) -> None:
        """The connection is gone, or begins anew."""
        self._call = None
        self._cancel_timer()
        for one in list(self._asked):
            self._forget(one)

    # ── Copier ───────────────────────────────────────────────────────────────────────────────

    def written(self, partition: Partition) -> None:
        """Look at it when this turn's appends are done."""
        if partition not in self._due:
            partition.kept_up(self.broker_id, trio.current_time())
            self._due[partition] = None
        if self._call is not None:
            self._node.copiers.add(self)

    def moved(self, partition: Partition) -> None:
        """Tell of the watermark with the next batches, or soon."""
        self._late[partition] = None
        if self._call is not None:
            self._wait_until(trio.current_time() + NEWS_S)

    def contradicted(self, partition: Partition, broker_id: str) -> None:
        """Let it say anew what it has, if it is still this connection that copies it: what it
        sends before it hears of that counts for nothing."""
        if broker_id == self.broker_id:
            self._contradicted[partition] = UNTOLD
            self._due[partition] = None
            if self._call is not None:
                self._node.copiers.add(self)

    # ── waiting ──────────────────────────────────────────────────────────────────────────────

    def step(self, *, last: bool = False) -> None:
        """Answer, or verify what must be first, or wait. ``last``: wait no more."""
        if self._call is None:
            return
        found = self._collect()
        if found.unverified and not self._working:
            self._working = True
            self._call.spawn(partial(self._verify, found.unverified))
        if last or found.results:
            self._answer(self._call, found)
        elif self._late:
            self._wait_until(trio.current_time() + NEWS_S)
        else:
            self._wait_until(self._deadline)

    def finish(self) -> None:
        """Answer now with what there is: deadline or shutdown."""
        self.step(last=True)

    def _wait_until(self, deadline: float) -> None:
        if self._timer is not None:
            if self._deadline <= deadline:
                return
            self._timer.cancel()
        self._node.parked[self] = None
        self._deadline = min(self._deadline, deadline)
        self._timer = self._node.timers.at(self._deadline, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.finish()
        self._node.outbox.flush()

    def _cancel_timer(self) -> None:
        self._node.parked.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _verify(self, unverified: Sequence[tuple[Partition, int]]) -> None:
        for partition, offset in unverified:
            try:
                await partition.verify(offset, self._node.world.offload)
            except OSError as error:
                self._unreadable[partition] = partition.unreadable(error)
        self._working = False
        self.step()

    # ── what is asked ────────────────────────────────────────────────────────────────────────

    def _admit(self, asked: FetchPartition, now: float) -> None:
        if not -1 <= asked.flushed_end <= asked.offset:
            raise texts_wire.malformed_frame("a follower has flushed more than it wrote")
        partition = self._node.shelf.find(asked.topic_id, asked.partition)
        partition.admit(self.broker_id, self.broker_epoch, asked.leader_epoch)
        self._check_contradicted(partition, asked)
        diverging = partition.divergence(asked.last_fetched_epoch, asked.offset)
        if diverging is not None:
            self._forget(partition)
            self._settled.results.append(_result(partition, asked, diverging=diverging))
            return
        self._forget(partition)  # what was asked before stands no more
        partition.observe(self.broker_id, self.broker_epoch, asked, now)
        if self.broker_id not in partition.leadership.isr:
            self._node.isr.look(partition)
        self._asked[partition] = asked
        partition.park_copier(self)
        if asked.offset < partition.log.end or asked.high_watermark < 0:
            self._due[partition] = None
        elif partition.has_news(self.broker_id, self._cleaned_min(partition)):
            self._late[partition] = None

    def _forget(self, partition: Partition) -> None:
        """It has to be named again."""
        if self._asked.pop(partition, None) is not None:
            partition.unpark_copier(self)
        self._due.pop(partition, None)
        self._late.pop(partition, None)

    def _check_contradicted(self, partition: Partition, asked: FetchPartition) -> None:
        """T045, to be answered to the request in hand, for what may be from before the follower
        said over another connection that it holds less."""
        last = self._contradicted.get(partition)
        if last == UNTOLD:
            last = self._contradicted[partition] = self._sequence + FETCHES_OWED_MAX - 1
        if last is None:
            return
        if self._sequence <= last:
            self._forget(partition)
            raise partition.fenced(asked.leader_epoch)
        del self._contradicted[partition]

    # ── what there is ────────────────────────────────────────────────────────────────────────

    def _collect(self) -> Collected:
        found = self._settled.again()
        bytes_max = 1 if self._node.world.maybe("fetch.tiny", 0.05) else self._bytes_max
        for partition in list(self._due):
            if found.length >= bytes_max:
                break
            asked = self._asked[partition]
            try:
                partition.admit(self.broker_id, self.broker_epoch, asked.leader_epoch)
                self._check_contradicted(partition, asked)
                self._read(partition, asked, bytes_max, found)
            except TailraceError as error:
                self._forget(partition)
                found.refuse(asked, error)
            except OSError as error:  # a file that cannot be opened or read just now
                self._forget(partition)
                found.refuse(asked, partition.unreadable(error))
        return found

    def _read(
        self, partition: Partition, asked: FetchPartition, bytes_max: int, found: Collected
    ) -> None:
        log, length = partition.log, 0
        if log.verify_pending(asked.offset) is not None:
            if partition in self._unreadable:
                raise self._unreadable[partition]
            found.unverified.append((partition, asked.offset))
            return
        if asked.offset < log.end:
            left = min(bytes_max - found.length, asked.bytes_max, FETCH_PARTITION_BYTES_MAX)
            piece = log.read(asked.offset, left, log.end)
            # Only the first batch of an answer may be larger than asked for.
            if piece.length > left and found.length:
                return
            length = piece.length
            found.slices.append((partition, piece))
            found.length += length
        self._due.pop(partition)
        self._tell(partition, asked, found, length)

    def _tell(
        self, partition: Partition, asked: FetchPartition, found: Collected, length: int
    ) -> None:
        cleaned_min = self._cleaned_min(partition)
        found.results.append(_result(partition, asked, length=length, cleaned_min=cleaned_min))
        partition.told(self.broker_id, cleaned_min)
        self._late.pop(partition, None)
        if length:
            self._forget(partition)

    def _cleaned_min(self, partition: Partition) -> int:
        return self._node.cleaner.cleaned_min(partition) if partition.config.compacts else -1

    def _answer(self, call: Call, found: Collected) -> None:
        self._call = None
        self._cancel_timer()
        for partition in list(self._late):
            if partition.role == "leader" and partition.serving:
                self._tell(partition, self._asked[partition], found, 0)
        ranges: list[FileRange] = []
        for partition, piece in found.slices:
            partition.metrics.bytes_out.inc(piece.length)
            ranges.extend(piece.ranges)
        call.answer(FetchResponse(tuple(found.results)), ranges, found.length, found.code)


def fetch(node: Node, call: Call, request: FetchRequest) -> None:
    """Answer at once if there is enough, else when there is."""
    broker_id = request.replica_id
    if broker_id is None:
        fetch_records(node, call, request)
        return
    check_count(len(request.partitions), PARTITIONS_PER_REQUEST_MAX, of="partitions")
    session = call.standing
    if session is not None and not isinstance(session, CopierSession):
        raise texts_wire.malformed_frame("a consumer's connection has no follower's session")
    if request.sequence == 0:
        if session is not None:
            session.finish()
        session = CopierSession(node, broker_id, request.broker_epoch)
        call.stand(session)
    if session is None or session.broker_epoch != request.broker_epoch:
        raise texts_wire.malformed_frame("a follower begins with sequence 0")
    session.take(call, request)


def _result(
    partition: Partition,
    asked: FetchPartition,
    *,
    length: int = 0,
    diverging: tuple[int, int] = (-1, -1),
    cleaned_min: int = -1,
) -> FetchResult:
    high_watermark = partition.high_watermark
    return FetchResult(
        asked.topic_id,
        asked.partition,
        None,
        partition.log.start,
        high_watermark,
        high_watermark,
        partition.log.end,
        length,
        *diverging,
        cleaned_min,
    )
