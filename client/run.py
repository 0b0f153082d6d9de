"""``Consumer.run``: a handler for every record, many at a time, in the order that matters.

``Lanes`` decides what may be handled now. A lane with work has a task, which goes on from one
record to the next without a pass of the event loop in between: by key, the lane with the most
records is what the throughput waits for. Invariants:

- records of one lane (a key, or a partition) are handled one after the other, in their order;
- at most ``in_flight`` are being handled, and only while fewer are is another one taken: keys come
  in bursts, and those that wait for their lane must not keep other lanes from having work;
- at most ``AHEAD`` times ``in_flight`` were taken from the consumer and are not done;
- of a partition in a group, at most ``SPAN_MAX`` from the first that is not done on: it is what is
  handled again after a crash. A partition with more waits, the others go on;
- what a handler sets in its context is there for no other record, however many share a task;
- after a failure or a cancellation no handler begins, and at the end nothing counts as in hand.
"""

import contextlib
import logging
import math
import signal
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Hashable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.lowlevel

from tailrace.client.apart import Apart
from tailrace.client.commits import CommitPoint
from tailrace.client.metrics import instruments
from tailrace.client.policy import ErrorPolicy
from tailrace.client.progress import Finishing
from tailrace.client.reading import RecordReader
from tailrace.client.records import Record
from tailrace.protocol import texts, texts_client, texts_config

if TYPE_CHECKING:
    from tailrace.client.feed import Feed
    from tailrace.client.partition_buffer import PartitionBuffer

Order = Literal["key", "partition", "none"]
ORDERS = ("key", "partition", "none")
# An access log, by client: 11 handlers have work of 64 with 1, 20 with 8 and with more; with 8 the
# end of its longest lane leaves others behind, for 2% to 6% of the time, with 16 none.
AHEAD = 16
SPAN_MAX = 10_000
_log = logging.getLogger("tailrace.client")


class Lanes:
    """Which of the taken records may be handled now: at most one of each lane."""

    def __init__(self, order: Order) -> None:
        self.taken = 0  # not done yet
        self.working = 0  # of them: being handled
        self._order = order
        self._behind: dict[Hashable, deque[Taken]] = {}  # of lanes that are busy

    def push(self, taken: "Taken") -> bool:
        """Take one more; whether it may be handled now, or waits until ``done`` returns it."""
        self.taken += 1
        lane = taken.lane = self._lane(taken.record)
        if lane is not None:
            queue = self._behind.get(lane)
            if queue is not None:
                queue.append(taken)
                return False
            self._behind[lane] = deque()
        self.working += 1
        return True

    def drop(self, of: Finishing | None, above: int) -> None:
        """Forget those of one partition that wait, from behind an offset on."""
        for queue in self._behind.values():
            kept = [t for t in queue if t.of is not of or t.record.offset <= above]
            self.taken -= len(queue) - len(kept)
            queue.clear()
            queue.extend(kept)

    def done(self, taken: "Taken") -> "Taken | None":
        """One that was handled is done; the next of its lane, which may be handled now."""
        self.taken -= 1
        queue = self._behind.get(taken.lane)
        if queue:
            return queue.popleft()
        self._behind.pop(taken.lane, None)
        self.working -= 1
        return None

    def _lane(self, record: Record[Any, Any]) -> Hashable:
        if self._order == "partition":
            return record.topic, record.partition
        if self._order == "key" and record.raw_key is not None:
            return record.topic, record.partition, record.raw_key
        return None


class Taken:
    """One record that is to be handled, and among which."""

    __slots__ = ("lane", "of", "record")

    def __init__(self, record: Record[Any, Any], of: Finishing | None) -> None:
        self.record = record
        self.of = of  # None: without a group nobody keeps account
        self.lane: Hashable = None  # None: it waits for no other


class Run:
    """One call of ``run``: a task that reads, and one for each lane that has work.

    With a group it is the ``Holder`` of what it took from the reader.
    """

    def __init__(
        self,
        feed: "Feed",
        handler: Callable[[Record[Any, Any]], Awaitable[None]],
        policy: ErrorPolicy | None,
        order: Order,
        in_flight: int,
    ) -> None:
        _check(in_flight, order)
        self.failure: BaseException | None = None  # the first one
        self.reading = anyio.CancelScope()
        self.everything = anyio.CancelScope()
        self.lanes = Lanes(order)
        self.drained = False
        self.ended = False
        self._feed = feed
        self._finishing: dict[PartitionBuffer, Finishing] = {}
        self._held_back: dict[Finishing, PartitionBuffer] = {}  # paused by us
        self._handler = handler
        self._policy = policy
        self._in_flight = in_flight
        self._room: anyio.Event | None = None  # while reading waits for it
        self._lane_before: Hashable = None  # of the record that was done last

    async def go(self, records: RecordReader[Any, Any]) -> None:
        """Until reading has ended and every record is done, or the drain's time is over.

        What goes wrong is ``failure``; T055 if another one of the consumer goes on. Cancelled: the
        handlers are.
        """
        grouped = self._feed.options.group is not None
        with self._border(), self._holding(records), self.everything:
            async with anyio.create_task_group() as tasks:
                with self._border(), self.reading:
                    async for record in records:
                        of = self._finishing_of(records.buffer) if grouped else None
                        if of is not None:
                            of.take(record)
                            self._hold_back(of, records.buffer)
                        if self.drained:  # and not cancelled yet: it comes again
                            break
                        taken = Taken(record, of)
                        if self.lanes.push(taken):
                            self._begin(taken)
                            tasks.start_soon(self._work, taken)
                        await self._wait_for_room()

    def hand_back(self) -> "dict[PartitionBuffer, Finishing]":
        """Another ``run`` begins: what this one took and did not finish is handed out again.

        It would be committed with what comes behind it, and nobody would ever handle it. What
        cannot be handed out again, as its partition goes, is returned: the account stays open.
        """
        left: dict[PartitionBuffer, Finishing] = {}
        for of in list(self._held_back):
            self._resume(of)
        for buffer, of in self._finishing.items():
            point = of.unprocessed
            if point is None:
                continue
            if self._feed.buffers.get(buffer.at) is not buffer:
                left[buffer] = of
            elif buffer.position > point.offset:
                self._feed.jumped()
                buffer.rewind(point.offset, buffer.position)
                self._feed.moved(buffer)
        return left

    # ── Holder: with a group ─────────────────────────────────────────────────────────────────

    def _finishing_of(self, buffer: "PartitionBuffer") -> Finishing:
        found = self._finishing.get(buffer)
        if found is None:
            group = self._feed.group
            holdings = () if group is None else group.all()
            held = {holding.buffer for holding in holdings}
            gone = [
                b
                for b, of in self._finishing.items()
                if of.busy_since is None and b not in held  # released, or lost
            ]
            for one in gone:
                del self._finishing[one]
            found = self._finishing[buffer] = Finishing()
        return found

    def _hold_back(self, of: Finishing, buffer: "PartitionBuffer") -> None:
        if len(of) >= SPAN_MAX and of not in self._held_back:
            self._held_back[of] = buffer
            buffer.pause(self)
            self._feed.jumped()
            self._feed.dropped()

    def _go_on(self, of: Finishing) -> None:
        if of in self._held_back and len(of) <= SPAN_MAX // 2:
            self._resume(of)

    def _resume(self, of: Finishing) -> None:
        buffer = self._held_back.pop(of)
        buffer.resume(self)
        self._feed.moved(buffer)

    def unprocessed(self, buffer: "PartitionBuffer") -> CommitPoint | None:
        """The first record that is not done."""
        of = self._finishing.get(buffer)
        return None if of is None else of.unprocessed

    def busy_since(self, buffer: "PartitionBuffer") -> float | None:
        """Since when its oldest handler runs."""
        of = self._finishing.get(buffer)
        return None if of is None else of.busy_since

    def withdrawn(self, buffer: "PartitionBuffer") -> None:
        """What was begun is finished, and what lies before it; the rest is another member's."""
        of = self._finishing.get(buffer)
        if of is not None:
            self._held_back.pop(of, None)
            self.lanes.drop(of, of.begun_last)
            self._make_room()

    # ── its end ──────────────────────────────────────────────────────────────────────────────

    def tell(self) -> None:
        """Raise the first failure of reading or of a handler; log what was not finished."""
        if self.failure is not None:
            raise self.failure
        if self.lanes.taken:
            _log.warning(
                "run() stopped with %s records not finished within drain_timeout",
                self.lanes.taken,
                extra={"event": "consumer.not_drained", "code": None},
            )

    def drain(self, timeout: float) -> None:
        """Take no more records; what is in flight has so many seconds.

        With a group that includes what lies before it, or it would be handled again elsewhere.
        """
        self.drained = True
        self.reading.cancel()
        self.lanes.drop(None, -1)
        for of in self._finishing.values():
            self.lanes.drop(of, of.begun_last)
        self.everything.deadline = anyio.current_time() + timeout

    async def _wait_for_room(self) -> None:
        lanes, most = self.lanes, self._in_flight
        while lanes.working >= most or lanes.taken >= AHEAD * most:
            self._room = anyio.Event()
            await self._room.wait()

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()

    def _begin(self, taken: Taken) -> None:
        if taken.of is not None:
            taken.of.begin(taken.record, self._feed.client.clock.now())

    @contextlib.contextmanager
    def _border(self, *, of_handler: bool = False) -> Generator[None]:
        """What the user's handler raises, or reading, is what ``run`` raises, as itself (C10).

        So is a handler's cancellation that nobody asked for: it waited for a task that somebody
        has cancelled, say. Otherwise the run would end as if all were done.
        """
        try:
            yield
        except BaseException as error:  # the border to the user's handler and codecs
            cancelled = isinstance(error, anyio.get_cancelled_exc_class())
            if cancelled and not (of_handler and anyio.current_effective_deadline() > -math.inf):
                raise
            self.everything.cancel()
            if self.failure is None:
                self.failure = error
            elif self.failure is not error:
                self.failure.add_note(f"also failed: {texts.error_summary(error)}")

    @contextlib.contextmanager
    def _holding(self, records: RecordReader[Any, Any]) -> Generator[None]:
        """Afterwards no handler is at work: a partition that is to go need not wait for one."""
        before = records.holder
        if isinstance(before, Run):
            if not before.ended:
                raise texts_client.second_reader(first="run()", second="run()")
            self._finishing = before.hand_back()
        records.holder = self
        try:
            yield
        finally:
            self.ended = True
            for of in self._finishing.values():
                of.stop()
            if self._feed.group is not None:
                self._feed.group.look()

    async def _work(self, first: Taken) -> None:
        """Handle it, and one after the other what comes behind it in its lane.

        The loop gets to run where no other lane has done a record since the one before: then the
        handler may be one that never waits. After each record this lane would wait for all others.
        """
        taken: Taken | None = first
        lane = first.lane
        with self._border(of_handler=True):
            while taken is not None:
                await self._handle(taken.record)
                taken = self._done(taken)
                again, self._lane_before = lane is self._lane_before, lane
                if taken is not None:
                    if again:
                        await anyio.lowlevel.checkpoint()
                    else:
                        await anyio.lowlevel.checkpoint_if_cancelled()

    def _done(self, taken: Taken) -> Taken | None:
        """Note it down; the next of its lane, which has begun then."""
        following = self.lanes.done(taken)
        if taken.of is not None:
            taken.of.done(taken.record)
            self._go_on(taken.of)
        if following is not None:
            self._begin(following)
        if taken.of is not None and self._feed.group is not None:
            self._feed.group.look()
            if not self.lanes.taken:
                self._feed.group.all_processed()
        self._make_room()
        return following

    async def _handle(self, record: Record[Any, Any]) -> None:
        policy, attempt, context = self._policy, 0, copy_context()
        while True:
            attempt += 1
            try:
                await Apart(context, self._handler, record)
                return
            except Exception as error:  # the border to the user's handler
                if policy is None or not isinstance(error, policy.on):
                    raise
                if attempt >= policy.attempts:
                    if policy.then == "raise":
                        raise
                    await self._give_up(record, error, attempt, policy.topic)
                    return
            await anyio.sleep(policy.delay(attempt))

    async def _give_up(
        self, record: Record[Any, Any], error: Exception, attempts: int, topic: str | None
    ) -> None:
        if topic is not None:
            await self._feed.dead_letters.send(topic, record, error, attempts)
        else:
            instruments.skipped("given_up", 1)
        _log.warning(
            "%s failed %s times (%s); %s",
            texts.record_name(record.topic, record.partition, record.offset),
            attempts,
            texts.error_summary(error),
            "skipped" if topic is None else f"written to {topic}",
            extra={"event": "consumer.given_up", "code": None},
        )


async def run(
    this: Run, records: RecordReader[Any, Any], *, signals: bool, drain_timeout: float
) -> None:
    """``go`` and ``tell``; drained by SIGTERM and SIGINT where they can be listened to."""
    if signals and in_main_thread():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch_signals, this, drain_timeout)
            await this.go(records)
            tasks.cancel_scope.cancel()
    else:
        await this.go(records)
    this.tell()


def in_main_thread() -> bool:
    """Where signals can be listened to."""
    return threading.current_thread() is threading.main_thread()


async def _watch_signals(this: Run, drain_timeout: float) -> None:
    """The first signal drains, the second one ends at once."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        drained = False
        async for _ in received:
            this.drain(0.0 if drained else drain_timeout)
            drained = True


def _check(in_flight: int, order: str) -> None:
    call = "consumer.run()"
    if isinstance(in_flight, bool) or in_flight < 1:
        raise texts_config.bad_argument(
            "in_flight", in_flight, call=call, expected="at least 1", hint="Example: 64"
        )
    if order not in ORDERS:
        raise texts_config.bad_argument(
            "order", order, call=call, expected=f"one of {ORDERS}", hint="Default: 'key'"
        )
