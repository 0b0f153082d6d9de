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
- In a session what was asked stands until there is news of it, and only that is told and has to be
  named again: thousands of quiet partitions cost a consumer no more than a few do (KIP-227).
  Its next request ends the one that waits. Who has too much standing is told of all it named.
- A consumer that names its rack may be sent to a follower there, which serves what it knows to be
  committed (KIP-392). Followers' own fetches are another matter (``copying``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import trio

from tailrace.broker.call import Call
from tailrace.broker.limits import (
    FETCH_PARTITION_BYTES_MAX,
    FETCH_SESSIONS_MAX,
    FETCH_STANDING_MAX,
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

RESULTS_MAX = PARTITIONS_PER_REQUEST_MAX  # told at once of what stands
LATE_S = 0.05  # how late a wake-up is where the simulation delays one


class _Place:
    """One partition that is asked for, and where it waits."""

    __slots__ = ("_fetch", "parked", "wanted")

    def __init__(self, fetch: "Fetch", wanted: FetchPartition) -> None:
        self.wanted = wanted
        self.parked: Partition | None = None
        self._fetch = fetch

    def wake(self) -> None:
        """There is more to read, or never will be."""
        if self.parked is not None:
            self._fetch.woken(self)

    def park(self, partition: Partition) -> None:
        if self.parked is not partition:
            self.unpark()
            self.parked = partition
            partition.park(self)

    def unpark(self) -> None:
        if self.parked is not None:
            self.parked.unpark(self)
            self.parked = None


@dataclass(slots=True)
class _Found:
    """What one look at the partitions found."""

    told: dict[_Place, FetchResult] = field(default_factory=dict[_Place, FetchResult])
    pieces: dict[_Place, tuple[Partition, LogSlice]] = field(
        default_factory=dict[_Place, tuple[Partition, LogSlice]]
    )
    length: int = 0
    full: bool = False  # a limit left something behind: waiting would bring nothing
    code: str = "ok"  # or the first error's
    unverified: dict[_Place, Partition] = field(default_factory=dict[_Place, Partition])

    def refuse(self, place: _Place, error: TailraceError) -> None:
        """The answer has an error, and does not wait for anything else."""
        if self.code == "ok":
            self.code = error.code
        self.told[place] = refused(place.wanted, error)


class Fetch:
    """What one reader asks for. ``crowded`` None: a request by itself; else all of a session, and
    whether its connection has more places standing than it may.

    Invariants: a request in hand is answered exactly once; of a place that is neither ``_due`` nor
    told of there is no news, and it is parked at its partition.
    """

    __slots__ = (
        *("_asked", "_bytes_max", "_bytes_min", "_call", "_crowded", "_deadline", "_due", "_held"),
        *("_named", "_node", "_rack", "_stands", "_timer", "_unreadable", "_working"),
    )

    def __init__(self, node: Node, crowded: Callable[[], bool] | None = None) -> None:
        self._node = node
        self._crowded = crowded
        self._asked: dict[tuple[bytes, int], _Place] = {}
        self._due: dict[_Place, None] = {}  # to be looked at
        self._held: dict[_Place, None] = {}  # what is committed there is not known yet
        self._call: Call | None = None
        # Of the request in hand:
        self._named: list[_Place] = []
        self._bytes_min = self._bytes_max = 0
        self._rack: str | None = None
        self._stands = False  # what it named does, without news
        self._deadline = 0.0
        self._timer: Timer | None = None  # set while a request waits
        self._working = False  # a task verifies a segment for us
        self._unreadable: dict[Partition, TailraceError] = {}  # where that failed

    @property
    def standing(self) -> int:
        """Partitions that were asked for and not told of."""
        return len(self._asked)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to be told, and nobody to tell."""
        return self._call is None and not self._asked

    def take(self, call: Call, request: FetchRequest) -> None:
        """Answer, or verify what must be first, or wait. The request before, if it waits, ends."""
        if self._call is not None:
            self._answer(self._call, self._collect(), over=False)
        if request.sequence == 0:
            self._forget_all()
        self._call, call.abandoned = call, self.close
        self._bytes_min, self._bytes_max = request.bytes_min, request.bytes_max
        self._rack = request.rack
        self._stands = self._crowded is not None and request.wait_ms > 0
        self._unreadable.clear()
        self._deadline = self._node.timers.shared(min(request.wait_ms, FETCH_WAIT_MS_MAX) / 1000)
        self._named = [_Place(self, wanted) for wanted in request.partitions]
        for place in self._named:
            key = place.wanted.topic_id, place.wanted.partition
            if key in self._asked:
                self._forget(self._asked[key])
            self._asked[key] = place
            self._due[place] = None
        self.step()

    def close(self) -> None:
        """Nobody wants it any more."""
        self._call = None
        self._wait_no_more()
        self._forget_all()

    # ── waiting ──────────────────────────────────────────────────────────────────────────────

    def step(self, *, last: bool = False) -> None:
        """Answer the request in hand, or verify, or wait. ``last``: wait no more."""
        if self._call is None:
            return
        last = last or self._node.state() == "draining"
        found = self._collect()
        if found.unverified and not self._working:
            self._working = True
            self._call.spawn(partial(self._verify, found.unverified))
        if found.unverified and not self._stands:
            self._wait_no_more()  # it goes on when they are verified
        elif last or found.code != "ok" or self._is_due(found):
            self._answer(self._call, found, over=True)
        elif self._timer is None:
            self._wait(found)

    def _is_due(self, found: _Found) -> bool:
        enough = found.full or found.length >= self._bytes_min
        return enough or trio.current_time() >= self._deadline

    def woken(self, place: _Place) -> None:
        """Its partition has more, or went offline."""
        self._due[place] = None
        if self._timer is None:
            place.unpark()  # it is looked at with the next request: until then once is enough
        elif self._node.world.maybe("fetch.late_wakeup", 0.05):
            self._node.timers.at(trio.current_time() + LATE_S, self._late)
        else:
            self.step()

    def finish(self) -> None:
        """Answer now with what there is: deadline or shutdown."""
        self.step(last=True)

    async def _verify(self, unverified: Mapping[_Place, Partition]) -> None:
        try:
            for place, partition in unverified.items():
                try:
                    await partition.verify(place.wanted.offset, self._node.world.offload)
                except OSError as error:
                    self._unreadable[partition] = partition.unreadable(error)
        finally:
            self._working = False
        self.step()

    def _late(self) -> None:
        if self._timer is not None:
            self.step()
            self._node.outbox.flush()

    def _expire(self) -> None:
        self.finish()
        self._node.outbox.flush()

    def _wait(self, found: _Found) -> None:
        for place in list(self._due):
            place.park(self._partition(place.wanted))
            if place not in found.pieces and place not in found.unverified:
                del self._due[place]
        self._timer = self._node.timers.at(self._deadline, self._expire)
        self._node.parked[self] = None

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._node.parked.pop(self, None)

    # ── answers ──────────────────────────────────────────────────────────────────────────────

    def _answer(self, call: Call, found: _Found, *, over: bool) -> None:
        """``over``: it has had its time, or there is something; else another one has come."""
        self._call = None
        self._wait_no_more()
        stands = self._stands and self._crowded is not None and not self._crowded()
        places = dict.fromkeys(() if stands else self._named)
        places |= dict.fromkeys(found.told)
        if over:
            places |= dict.fromkeys(islice(self._held, max(0, RESULTS_MAX - len(places))))
        results = [found.told.get(place) or self._without_news(place.wanted) for place in places]
        ranges: list[FileRange] = []
        for place in places:
            self._forget(place)
            if place in found.pieces:
                partition, piece = found.pieces[place]
                partition.metrics.bytes_out.inc(piece.length)
                ranges.extend(piece.ranges)
        self._named = []
        call.answer(FetchResponse(tuple(results)), ranges, found.length, found.code)

    def _forget(self, place: _Place) -> None:
        """It has to be named again."""
        place.unpark()
        self._due.pop(place, None)
        self._held.pop(place, None)
        key = place.wanted.topic_id, place.wanted.partition
        if self._asked.get(key) is place:
            del self._asked[key]

    def _forget_all(self) -> None:
        for place in list(self._asked.values()):
            self._forget(place)

    def _without_news(self, wanted: FetchPartition) -> FetchResult:
        try:
            return _result(wanted, self._partition(wanted))
        except TailraceError as error:
            return refused(wanted, error)

    # ── what there is ────────────────────────────────────────────────────────────────────────

    def _collect(self) -> _Found:
        found = _Found()
        bytes_max = min(self._bytes_max, self._node.config.limits.fetch_size_bytes)
        if self._node.world.maybe("fetch.tiny", 0.05):
            bytes_max = 1
        # Without a lease others may lead by now, and have more (R14, R15): all are told.
        looked_at = self._due if self._node.session.valid() else self._asked.values()
        for place in list(looked_at):
            if self._crowded is not None and (
                len(found.told) >= RESULTS_MAX or found.length >= max(bytes_max, 1)
            ):
                found.full = True
                break
            try:
                self._look(place, bytes_max, found)
            except TailraceError as error:
                found.refuse(place, error)
            except OSError as error:  # a file that cannot be opened or read just now
                found.refuse(place, self._partition(place.wanted).unreadable(error))
        return found

    def _partition(self, wanted: FetchPartition) -> Partition:
        """The one this broker leads; or its copy, if the consumer may read that."""
        shelf = self._node.shelf
        if self._rack is not None:
            copy = shelf.get(wanted.topic_id, wanted.partition)
            if copy is not None and copy.role == "follower":
                return copy
        return shelf.find(wanted.topic_id, wanted.partition)

    def _look(self, place: _Place, bytes_max: int, found: _Found) -> None:
        wanted = place.wanted
        partition = self._partition(wanted)
        self._node.session.check()
        _check_epoch(partition, wanted)
        self._held.pop(place, None)
        high_watermark = partition.shown_high_watermark
        if high_watermark is None:
            self._held[place] = None
            return
        near = self._nearer(partition, wanted)
        if near is not None:
            found.told[place] = _result(wanted, partition, near=near)
            found.full = True  # the consumer has something to do
            return
        if partition.log.verify_pending(wanted.offset) is not None:
            if partition in self._unreadable:
                raise self._unreadable[partition]
            found.unverified[place] = partition
            return
        left = min(bytes_max - found.length, wanted.bytes_max, FETCH_PARTITION_BYTES_MAX)
        piece = partition.read(wanted.offset, max(left, 0))
        # Only the first batch of an answer may be larger than asked for.
        length = 0 if piece.length > left and found.length else piece.length
        found.full |= (piece.next_offset if length else wanted.offset) < high_watermark
        if length:
            found.pieces[place] = partition, piece
            found.length += length
            found.told[place] = _result(wanted, partition, length=length)
        elif self._stands and wanted.offset >= high_watermark:
            place.park(partition)  # the next look need not be at this one
            self._due.pop(place, None)

    def _nearer(self, partition: Partition, wanted: FetchPartition) -> str | None:
        """A follower near the consumer that has what is wanted, if there is one."""
        if self._rack is None or partition.role != "leader":
            return None
        return nearest(self._node, partition, self._rack, wanted.offset)


class FetchSessions:
    """Those of one connection: what was asked stands until it is told of (KIP-227)."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._fetches: dict[int, Fetch] = {}

    def take(self, call: Call, request: FetchRequest) -> None:
        """Sequence 0 begins anew; without partitions it ends what stood."""
        number, ends = request.session, request.sequence == 0 and not request.partitions
        fetch = self._fetches.pop(number, None) if ends else self._fetches.get(number)
        if fetch is None and not ends and self._has_room():
            fetch = self._fetches[number] = Fetch(self._node, self._crowded)
        if fetch is None:
            fetch = Fetch(self._node)  # by itself
        fetch.take(call, request)

    def _has_room(self) -> bool:
        if len(self._fetches) >= FETCH_SESSIONS_MAX:
            self._fetches = {n: one for n, one in self._fetches.items() if not one.empty}
        return len(self._fetches) < FETCH_SESSIONS_MAX

    def close(self) -> None:
        """The connection is gone."""
        for fetch in self._fetches.values():
            fetch.close()

    def _crowded(self) -> bool:
        return sum(fetch.standing for fetch in self._fetches.values()) > FETCH_STANDING_MAX


def _result(
    wanted: FetchPartition, partition: Partition, *, length: int = 0, near: str | None = None
) -> FetchResult:
    high_watermark = partition.shown_high_watermark
    if high_watermark is None:
        raise partition.offset_not_available()
    return FetchResult(
        *(wanted.topic_id, wanted.partition, None, partition.log.start),
        *(high_watermark, high_watermark, partition.log.end, length),
        preferred_replica=near,
    )


def refused(wanted: FetchPartition, error: TailraceError) -> FetchResult:
    """What is told of a partition where something is wrong."""
    return FetchResult(wanted.topic_id, wanted.partition, to_wire(error), -1, -1, -1, -1, 0)


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
    if request.session == 0:
        Fetch(node).take(call, request)
        return
    sessions = call.standing
    if sessions is None:
        sessions = FetchSessions(node)
        call.stand(sessions)
    if not isinstance(sessions, FetchSessions):
        raise texts_wire.malformed_frame("a follower's connection has no consumer's sessions")
    sessions.take(call, request)
