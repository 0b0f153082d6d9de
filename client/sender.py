"""The engine of one producer: it takes records, finds their lanes, sees them through, or gives up.

Owned by the client, which closes it; a ``Producer`` is the user's handle on it. One task of its
own (``_run``) serves the clock: linger, timeouts, pauses. All else happens in the calls.

Invariants:
- an accepted record is in a lane or in ``_unrouted`` until it has its outcome, which comes at the
  latest ``timeout`` seconds after its acceptance (C4);
- ``room.used`` is the sum of the sizes of those records: whoever finds no room waits in order of
  arrival (C5);
- failures that nobody asked for are kept for the next ``flush`` or ``aclose``.
"""

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import anyio

from tailrace.client.accumulator import (
    AGE_MAX_S,
    GROWN_BYTES,
    Lane,
    PendingBatch,
)
from tailrace.client.cluster import Cluster
from tailrace.client.delivery import fresh, settled
from tailrace.client.guard import Guard
from tailrace.client.metrics import instruments
from tailrace.client.outlet import Outlets
from tailrace.client.producer_options import ProducerOptions
from tailrace.client.retry import Backoff
from tailrace.client.room import Room
from tailrace.client.routes import Routes
from tailrace.client.runtime import Runtime
from tailrace.client.shapes import ProducerHealth
from tailrace.protocol import texts_client
from tailrace.protocol.batch import RECORDS_MAX, RecordHeaders
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.texts import partition_name

STALLED_AFTER_S = 5.0
CANCELLED_CLOSE_S = 2.0
FAILED_MAX = 1_000  # batches
_log = logging.getLogger("tailrace.client")


class Sender:
    """See the module."""

    def __init__(
        self,
        runtime: Runtime,
        cluster: Cluster,
        options: ProducerOptions,
        closed: Callable[["Sender"], None],
    ) -> None:
        self.options = options
        self.guard = Guard("Producer")
        self.clock = runtime.clock
        self.room = Room(options.buffer_bytes)
        instruments.buffers(self.room)
        self.routes = Routes(runtime, cluster, options, self.room, self)
        self._runtime = runtime
        self._cluster = cluster
        self._closed = closed  # tells the client
        self._outlets = Outlets(runtime, cluster, options, self)
        self._active: dict[Lane, None] = {}  # lanes with records that have no outcome
        self._numbers = itertools.count()
        self._refreshing: set[str] = set()
        self._failed: deque[PendingBatch] = deque()  # with records whose fate nobody asked for
        self._failed_before: tuple[int, TailraceError] | None = None  # what found no place there
        self._age_max = max(AGE_MAX_S, options.linger)
        self._stalled_after = min(STALLED_AFTER_S, options.timeout / 2)
        self._last_ack: int | None = None
        self._stalled = False
        self._ended = False
        self._alarm = anyio.Event()
        self._sleeps_until = math.inf
        cluster.watch(self._learnt)
        runtime.start_soon(self._run)

    def check(self) -> None:
        """Raise UsageError T053-T055, or ConnectError T005 once the outage is over."""
        if self._cluster.failure is not None:
            raise fresh(self._cluster.failure)
        self.guard.check()

    # ── taking records ───────────────────────────────────────────────────────────────────────

    def append(
        self,
        lane: Lane,
        value: bytes | None,
        key: bytes | None,
        timestamp: int,
        headers: RecordHeaders,
        size: int,
    ) -> tuple[PendingBatch, int]:
        """Accept one record; ``size`` counts the overhead too. There must be room."""
        batch = lane.open
        if batch is None or batch.size + size > batch.limit or len(batch.values) >= RECORDS_MAX:
            batch = self.batch_for(lane, size)
        self.room.used += size
        return batch, batch.add(value, key, timestamp, headers, size)

    def extend(
        self,
        lane: Lane,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None,
        timestamps: Sequence[int],
        headers: Sequence[RecordHeaders] | None,
        size: int,
    ) -> tuple[PendingBatch, int]:
        """Accept columns that fit into one batch, which then leaves as soon as it may: at once, or
        grown by what comes while all slots are taken."""
        batch = lane.open
        count = len(values)
        if batch is not None and len(batch.values) + count > RECORDS_MAX:
            lane.open = batch = None
        if batch is None or batch.size + size > batch.limit:
            batch = self.batch_for(lane, size)
        self.room.used += size
        first = batch.extend(values, keys, timestamps, headers, size)
        batch.claimed += count
        batch.urgent = True
        self.kick(lane)
        return batch, first

    def batch_for(self, lane: Lane, size: int) -> PendingBatch:
        """The batch that takes ``size`` more bytes, when the open one is not simply it."""
        batch = lane.open
        if batch is not None:
            if not batch.urgent:
                batch.urgent = True  # full: it goes, or it grows while all slots are taken
                self._pump(lane)
            if lane.open is batch and len(batch.values) < RECORDS_MAX:
                outlet = self._outlets.by_leader.get(lane.leader or "")
                taken = 0 if outlet is None else outlet.batch_bytes_max
                batch.limit = max(min(GROWN_BYTES, taken), self.options.batch_bytes)
                if batch.size + size <= batch.limit:
                    return batch
            lane.open = None
        self._active[lane] = None
        now, limit = self.clock.now(), self.options.batch_bytes
        return lane.start_batch(next(self._numbers), now, limit)

    def soon(self, lane: Lane) -> None:
        """A batch was begun by somebody who does not wait for it: it may gather a little."""
        outlet = self._outlets.add(lane)
        idle = outlet is not None and not outlet.sent
        self._wake(self.clock.now() + (0.0 if idle else self.options.linger))

    def kick(self, lane: Lane) -> None:
        """Somebody waits for what was just added: send it now if nothing is in flight."""
        self._pump(lane)
        wait_s = self.options.linger if lane.waiting else self._stalled_after
        self._wake(self.clock.now() + wait_s)

    def _pump(self, lane: Lane) -> None:
        outlet = self._outlets.add(lane)
        if outlet is not None:
            self._outlets.pump(outlet)

    # ── outcomes (outlet.Owner) ──────────────────────────────────────────────────────────────

    def finish(
        self, batch: PendingBatch, base_offset: int, append_time: int, error: TailraceError | None
    ) -> None:
        """See ``outlet.Owner``."""
        size = batch.size
        batch.finish(base_offset, append_time, error)
        instruments.sent(self.clock.now() - batch.accepted_at)
        if error is None:
            self._last_ack = self.clock.wall_ms()
        elif batch.unheard:
            self.remember(batch)
        self.room.release(size)

    def remember(self, batch: PendingBatch) -> None:
        """See ``routes.Taker``."""
        self._failed.append(batch)
        if len(self._failed) > FAILED_MAX:
            oldest = self._failed.popleft()
            assert oldest.error is not None
            count, first = self._failed_before or (0, oldest.error)
            self._failed_before = count + oldest.unheard, first

    def left(self, lane: Lane) -> None:
        """See ``outlet.Owner``."""
        route = self.routes.by_topic.get(lane.topic)
        if route is not None:
            route.turn(lane)

    def refresh(self, topic: str) -> None:
        """See ``outlet.Owner``."""
        if topic not in self._refreshing:
            self._refreshing.add(topic)
            self._runtime.start_soon(self._refresh, topic)

    async def _refresh(self, topic: str) -> None:
        backoff = Backoff(self._runtime.random)
        try:
            while not self._ended:
                self._cluster.misled(topic)
                try:
                    await self._cluster.topic(topic, auto_create=True)
                except TailraceError as error:
                    if not error.retriable:
                        self.routes.by_topic.pop(topic, None)
                        self._fail(self._lanes(topic), error)
                        return
                if not any(self._astray(lane) for lane in self._lanes(topic) if lane.pending):
                    self._outlets.pump_all()  # a connection may be there since the last news
                    return
                await anyio.sleep(backoff.next_leader())
        finally:
            self._refreshing.discard(topic)

    def _astray(self, lane: Lane) -> bool:
        """Whether nothing can be sent before somebody else leads it, or its leader is back."""
        if lane.leader is None:
            return True
        link = self._cluster.link(lane.leader, "produce")  # the control link alone is no help
        return self._cluster.several and (link is None or link.troubled)

    def _lanes(self, topic: str) -> list[Lane]:
        return [lane for lane in self._active if lane.topic == topic]

    def _fail(self, lanes: Iterable[Lane], error: TailraceError) -> None:
        for lane in list(lanes):
            for batch in lane.batches():
                lane.give_up(batch)
                self.finish(batch, -1, -1, error)

    def _learnt(self) -> None:
        """The cluster told us something: leaders, topics, or that the outage is over for good."""
        if self._cluster.failure is not None:
            self.guard.trip()
            self._give_up(self._cluster.failure)
            return
        for lane, leader in self.routes.update():
            self._outlets.moved(lane, leader)
        self._outlets.pump_all()

    def _give_up(self, error: TailraceError) -> None:
        """Every record gets this outcome, and so does whoever waits for room."""
        for topic in list(self.routes.unrouted):
            self.routes.fail_deferred(topic, error)
        self._fail(self._active, error)
        self.room.refuse(error)

    # ── the clock ────────────────────────────────────────────────────────────────────────────

    def paused(self, lane: Lane) -> None:
        """For ``outlet.Owner``."""
        self._wake(lane.not_before)

    def _wake(self, due: float) -> None:
        """See to it that ``_run`` looks at the clock at ``due``."""
        if due < self._sleeps_until:
            self._sleeps_until = due
            self._alarm.set()

    async def _run(self) -> None:
        while not self._ended:
            due = self._tick(self.clock.now())
            self._sleeps_until = due
            with anyio.move_on_after(due - self.clock.now()):
                await self._alarm.wait()
            self._alarm = anyio.Event()

    def _tick(self, now: float) -> float:
        """Do what is due; when something is due next."""
        for lane in list(self._active):
            self._expire(lane, now)
            if not lane.pending:
                del self._active[lane]
            elif lane.open is not None and now >= lane.open.accepted_at + self._age_max:
                lane.open = None
        self._outlets.pump_all()
        self._look_stalled(now)
        due = self._outlets.check_deadlines(now)
        for lane in self._active:
            due = min(due, self._due(lane, now))
        return due

    def _due(self, lane: Lane, now: float) -> float:
        times = [lane.not_before]
        oldest, newest = lane.oldest(), lane.open
        if oldest is not None:
            accepted_at = oldest.accepted_at
            times += (accepted_at + self._stalled_after, accepted_at + self.options.timeout)
        if newest is not None:
            accepted_at = newest.accepted_at
            times += (accepted_at + self.options.linger, accepted_at + self._age_max)
        due = math.inf
        for time in times:  # a loop, as ``min`` of a generator is three times the price
            if now < time < due:
                due = time
        return due

    def _expire(self, lane: Lane, now: float) -> None:
        timeout = self.options.timeout
        while (oldest := lane.oldest()) is not None and oldest.accepted_at + timeout <= now:
            flying = oldest in lane.in_flight
            error = texts_client.send_timeout(
                lane.topic,
                lane.partition,
                elapsed_s=now - oldest.accepted_at,
                attempts=oldest.attempts,
                last_error=oldest.last_error or self._outlets.trouble(lane),
                maybe_written=flying or oldest.uncertain,
            )
            lane.give_up(oldest)
            self.finish(oldest, -1, -1, error)

    def _look_stalled(self, now: float) -> None:
        oldest = self._oldest()
        stalled = oldest is not None and now - oldest.accepted_at >= self._stalled_after
        if stalled and not self._stalled and oldest is not None:
            reason = str(oldest.last_error or self._outlets.trouble(oldest.lane) or "no answer yet")
            name = partition_name(oldest.lane.topic, oldest.lane.partition)
            self._runtime.events.emit("stalled", reason, partition=name)
        self._stalled = stalled

    def _oldest(self) -> PendingBatch | None:
        found = [oldest for lane in self._active if (oldest := lane.oldest()) is not None]
        return min(found, key=lambda batch: batch.accepted_at, default=None)

    # ── flushing and closing ─────────────────────────────────────────────────────────────────

    async def flush(self) -> None:
        """Until everything accepted before has its outcome. Cancelled: nothing is dropped."""
        for unrouted in list(self.routes.unrouted.values()):
            await unrouted.routed()
        batches = [batch for lane in self._active for batch in lane.batches()]
        for batch in batches:
            batch.urgent = True
            batch.lane.open = None
        self._outlets.pump_all()
        for batch in batches:
            await settled(batch)

    def raise_failed(self) -> None:
        """FlushError T025 for failures that nobody awaited, once."""
        unheard = [(b.unheard, b.error) for b in self._failed if b.unheard and b.error]
        if self._failed_before is not None:
            unheard.insert(0, self._failed_before)
        self._failed.clear()
        self._failed_before = None
        if unheard:
            failed = sum(count for count, _ in unheard)
            raise texts_client.flush_failed(failed=failed, first=unheard[0][1])

    async def aclose(self) -> None:
        """Flush within ``close_timeout``, then end.

        Raises CloseTimeout T026 for what is left, FlushError T025 for what failed unheard.
        Cancelled: 2 s more, shielded; what is left then is logged at ERROR. Safe to call again.
        """
        if self.guard.closed:
            return
        self.guard.close()
        self.room.refuse(texts_client.already_closed("Producer"))
        began = self.clock.now()
        try:
            with anyio.move_on_after(self.options.close_timeout):
                await self.flush()
        except anyio.get_cancelled_exc_class():
            if self._runtime.alive():
                with anyio.move_on_after(CANCELLED_CLOSE_S, shield=True):
                    await self.flush()
            left = self._end(began)
            if left is not None:
                _log.error("%s", left, extra={"event": "producer.closed", "code": left.code})
            raise
        left = self._end(began)
        if left is not None:
            raise left
        self.raise_failed()

    def _end(self, began: float) -> TailraceError | None:
        """Stop; CloseTimeout if records were left, which get it as their outcome."""
        pending = [batch for lane in self._active for batch in lane.batches()]
        undelivered = self._records(pending)
        error: TailraceError | None = None
        if undelivered:
            error = texts_client.close_timeout(
                undelivered=undelivered,
                waited_s=self.clock.now() - began,
                maybe_written=any(b.uncertain or b in b.lane.in_flight for b in pending),
            )
            self._give_up(error)
        self._ended = True
        self._cluster.unwatch(self._learnt)
        self._closed(self)
        self._alarm.set()
        return error

    def _records(self, pending: Iterable[PendingBatch]) -> int:
        deferred = sum(len(unrouted.records) for unrouted in self.routes.unrouted.values())
        return deferred + sum(len(batch.values) for batch in pending)

    @property
    def undelivered(self) -> int:
        """Records without an outcome."""
        return self._records(batch for lane in self._active for batch in lane.batches())

    def health(self) -> ProducerHealth:
        """For ``Producer.health``."""
        now = self.clock.now()
        oldest = self._oldest()
        reason: str | None = None
        state: Literal["ok", "reconnecting", "stalled", "closed"] = "ok"
        if self.guard.closed:
            state, reason = "closed", None
        elif self._stalled and oldest is not None:
            state = "stalled"
            reason = str(oldest.last_error or self._outlets.trouble(oldest.lane) or "no answer yet")
        elif not self._cluster.health().healthy:
            state, reason = "reconnecting", self._cluster.health().reason
        return ProducerHealth(
            state=state,
            healthy=state == "ok",
            reason=reason,
            buffered_records=self.undelivered,
            buffered_bytes=self.room.used,
            in_flight=self._outlets.in_flight,
            oldest_pending_ms=None if oldest is None else int((now - oldest.accepted_at) * 1000),
            last_ack=self._last_ack,
        )
