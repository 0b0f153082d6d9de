"""Requests to leaders: which batches leave when, what their answers mean, what is tried again.

Everything here is decided and done synchronously, in whatever task brought the occasion: a
``send``, an answer, a timer. Tasks are started only for what must be waited for: a connection, a
producer id, fresh metadata. At most one of each kind is under way per leader, producer and topic.

Rules:
- a batch leaves at once when nothing is in flight to its leader; else when it is full, when
  ``linger`` is over, or when somebody flushes;
- a request holds at most one batch of a partition, and of 1,000 partitions; there are at most
  ``max_in_flight`` requests per leader;
- a connection that broke leaves open whether its requests were carried out: their batches are
  sent again, unchanged, and the sequence numbers make the broker recognise them (C3).
"""

import logging
import math
from dataclasses import dataclass
from typing import Protocol

import anyio

from tailrace.client.accumulator import Identity, Lane, PendingBatch
from tailrace.client.channel import WRITTEN, Channel, Lost, Outcome, Written
from tailrace.client.cluster import SLOW_S, Cluster
from tailrace.client.metrics import instruments
from tailrace.client.producer_options import ProducerOptions
from tailrace.client.retry import DOUBTFUL, Backoff, fails_over
from tailrace.client.runtime import Runtime
from tailrace.protocol import texts
from tailrace.protocol.errors import (
    ConnectError,
    ProduceError,
    StorageFull,
    TailraceError,
    from_wire,
)
from tailrace.protocol.limits import PARTITIONS_PER_REQUEST_MAX
from tailrace.protocol.messages import (
    ACKS_ALL,
    InitProducerIdRequest,
    InitProducerIdResponse,
    ProducePartition,
    ProduceRequest,
    ProduceResponse,
)
from tailrace.protocol.units import format_seconds

REQUEST_BYTES_MAX = 4 << 20  # of batches, uncompressed; a single larger batch goes alone
STALE = frozenset({"T010", "T011", "T032", "T033", "T045", "T100"})  # the metadata may be old
UNCERTAIN = frozenset({"T034"})  # the leader may have it, unless it says that it has not
_log = logging.getLogger("tailrace.client")


class Owner(Protocol):
    """The sender."""

    def finish(
        self, batch: PendingBatch, base_offset: int, append_time: int, error: TailraceError | None
    ) -> None:
        """A batch has its outcome."""
        ...

    def left(self, lane: Lane) -> None:
        """A batch of the lane is on its way."""
        ...

    def paused(self, lane: Lane) -> None:
        """The lane sends nothing before ``lane.not_before``, and must be looked at then."""
        ...

    def refresh(self, topic: str) -> None:
        """Ask for the topic's partitions again, in the background."""
        ...


@dataclass(eq=False, slots=True)
class Sent:
    """A produce request without an answer."""

    channel: Channel
    batches: list[PendingBatch]
    at: float


class Outlet:
    """One leader."""

    def __init__(self, leader: str) -> None:
        self.leader = leader
        self.busy: dict[Lane, None] = {}  # lanes that may have something to send, in turn
        self.sent: dict[Sent, None] = {}  # oldest first
        self.batch_bytes_max = 0  # of one that is made larger than ``batch_bytes``; 0: not told yet
        self.connecting = False
        self.pumping = False
        self.looked_at = -math.inf  # when others were last asked about it


class Outlets:
    """All leaders of one producer."""

    def __init__(
        self,
        runtime: Runtime,
        cluster: Cluster,
        options: ProducerOptions,
        owner: Owner,
    ) -> None:
        self.by_leader: dict[str, Outlet] = {}
        self.identity: Identity | None = None
        self._runtime = runtime
        self._cluster = cluster
        self._options = options
        self._owner = owner
        self._acks = ACKS_ALL if options.acks == "all" else options.acks
        self._timeout_ms = max(1, int(runtime.options.request_timeout * 750))
        self._identifying = False

    @property
    def in_flight(self) -> int:
        """Requests without an answer."""
        return sum(len(outlet.sent) for outlet in self.by_leader.values())

    # ── what leaves ──────────────────────────────────────────────────────────────────────────

    def add(self, lane: Lane) -> Outlet | None:
        """The lane has something to send; None while nobody leads it."""
        if lane.leader is None:
            self._owner.refresh(lane.topic)
            return None
        outlet = self.by_leader.get(lane.leader)
        if outlet is None:
            outlet = self.by_leader[lane.leader] = Outlet(lane.leader)
        outlet.busy[lane] = None
        return outlet

    def moved(self, lane: Lane, old_leader: str | None) -> None:
        """The lane has another leader than before."""
        outlet = self.by_leader.get(old_leader or "")
        if outlet is not None:
            outlet.busy.pop(lane, None)
        if lane.leader is not None:  # what the old one refused, the new one may take
            lane.not_before = 0.0
        if lane.waiting:
            self.add(lane)

    def pump_all(self) -> None:
        """Send whatever may leave."""
        for outlet in list(self.by_leader.values()):
            self.pump(outlet)

    def pump(self, outlet: Outlet) -> None:
        """Send whatever may leave to one leader."""
        if outlet.pumping or not outlet.busy:
            return
        channel = self._channel(outlet)
        if channel is None:
            return
        outlet.pumping = True
        try:
            while len(outlet.sent) < self._options.max_in_flight and channel.lost is None:
                batches = self._take(outlet, channel)
                if not batches:
                    break
                self._post(outlet, channel, batches)
        finally:
            outlet.pumping = False

    def _take(self, outlet: Outlet, channel: Channel) -> list[PendingBatch]:
        options = self._options
        now, idle = self._runtime.clock.now(), not outlet.sent
        outlet.batch_bytes_max = channel.hello.request_bytes_max // 2
        size_max = min(REQUEST_BYTES_MAX, outlet.batch_bytes_max)
        size = 0
        batches: list[PendingBatch] = []
        for lane in list(outlet.busy):
            if not lane.waiting:
                del outlet.busy[lane]
                continue
            if not lane.follow_topic() or not lane.ready(
                now, idle=idle, linger=options.linger, batch_bytes=options.batch_bytes
            ):
                continue
            if batches and size + lane.waiting[0].size > size_max:
                break
            if len(batches) == PARTITIONS_PER_REQUEST_MAX:
                break
            if options.idempotent and lane.identity is None and not self._identify(lane):
                continue
            batch = lane.take()
            if batch.last_error is not None:
                instruments.retried(batch.last_error.code)
            size += batch.size
            batches.append(batch)
            del outlet.busy[lane]
            if lane.waiting:
                outlet.busy[lane] = None  # behind the others
            self._owner.left(lane)
        return batches

    def _post(self, outlet: Outlet, channel: Channel, batches: list[PendingBatch]) -> None:
        body = [batch.encode(self._options.compression) for batch in batches]
        parts = tuple(
            ProducePartition(batch.lane.topic_id, batch.lane.partition, len(encoded))
            for batch, encoded in zip(batches, body, strict=True)
        )
        sent = Sent(channel, batches, self._runtime.clock.now())
        outlet.sent[sent] = None
        request = ProduceRequest(self._acks, self._timeout_ms, parts)
        channel.post(request, body, lambda outcome, _: self._answered(outlet, sent, outcome))

    # ── what came back ───────────────────────────────────────────────────────────────────────

    def _answered(self, outlet: Outlet, sent: Sent, outcome: Outcome | Written) -> None:
        del outlet.sent[sent]
        elapsed_s = self._runtime.clock.now() - sent.at
        if isinstance(outcome, Lost):
            error = outcome.error(elapsed_s)
            for batch in sent.batches:
                batch.lane.came_back(batch, error, uncertain=True)
                self._leader_gone(batch.lane)
        elif outcome is WRITTEN:
            for batch in sent.batches:
                self._acknowledged(batch, -1, -1)
        elif isinstance(outcome, TailraceError):
            for batch in sent.batches:
                self._refused(batch, outcome)
        else:
            assert isinstance(outcome, ProduceResponse)
            self._results(sent, outcome)
        for batch in sent.batches:
            self._line_up(batch.lane)
        self.pump(outlet)

    def _results(self, sent: Sent, response: ProduceResponse) -> None:
        if len(response.results) != len(sent.batches):
            reason = f"{len(response.results)} results for {len(sent.batches)} batches"
            lost = Lost(sent.channel.address, reason).error(0.0)
            for batch in sent.batches:
                batch.lane.came_back(batch, lost, uncertain=True)
            sent.channel.close(reason)
            return
        for batch, result in zip(sent.batches, response.results, strict=True):
            if result.error is None:
                self._acknowledged(batch, result.base_offset, result.append_time)
            else:
                self._refused(batch, from_wire(result.error))

    def _acknowledged(self, batch: PendingBatch, base_offset: int, append_time: int) -> None:
        batch.lane.acknowledged(batch)
        if not batch.done:
            self._owner.finish(batch, base_offset, append_time, None)

    def _refused(self, batch: PendingBatch, error: TailraceError) -> None:
        lane = batch.lane
        if error.code in DOUBTFUL and lane.leader is not None:
            self._cluster.doubt(lane.leader)
        stale = error.code in STALE or fails_over(error, several=self._cluster.several)
        if stale:
            self._owner.refresh(lane.topic)
        written = error.details.get("maybe_written", error.code in UNCERTAIN) is True
        lane.came_back(batch, error, uncertain=written)
        if batch.done:
            return
        if not error.retriable and not stale:
            if isinstance(error, ProduceError) and batch.uncertain:
                error.maybe_written = True
            lane.give_up(batch)
            self._owner.finish(batch, -1, -1, error)
        elif not batch.out_of_sequence:
            pause_s = lane.backoff.next_leader() if stale else lane.backoff.next()
            if isinstance(error, StorageFull):
                pause_s = max(pause_s, min(error.retry_after, 5.0))
            self._pause(lane, pause_s, error)

    def _line_up(self, lane: Lane) -> None:
        first = lane.line_up()
        if first is not None and first.out_of_sequence:
            if lane.may_renumber(first):
                self._renew(lane, first)
            else:
                self._pause(lane, lane.backoff.next(), first.last_error)
        if lane.waiting:
            self.add(lane)

    def _pause(self, lane: Lane, seconds: float, why: TailraceError | None) -> None:
        lane.refusal = why
        lane.not_before = self._runtime.clock.now() + seconds
        self._owner.paused(lane)

    # ── producer ids ─────────────────────────────────────────────────────────────────────────

    def _renew(self, lane: Lane, first: PendingBatch) -> None:
        """The broker no longer knows how far this producer is: begin again under a new id."""
        old = lane.identity
        lane.renumber()
        if self.identity is old:
            self.identity = None
        _log.warning(
            "producer id %s lost its place in %s[%d] (%s), taking a new one",
            *(old.producer_id if old else -1, lane.topic, lane.partition, first.last_error),
            extra={"event": "producer.renewed", "code": "T039"},
        )

    def _identify(self, lane: Lane) -> bool:
        """Give the lane the producer's identity, or have one fetched."""
        if self.identity is not None:
            lane.identity = self.identity
            return True
        if not self._identifying:
            self._identifying = True
            self._runtime.start_soon(self._ask_identity)
        return False

    async def _ask_identity(self) -> None:
        backoff = Backoff(self._runtime.random)
        timeout = self._runtime.options.request_timeout
        question = InitProducerIdRequest(transactional_id=None)
        try:
            while self.identity is None:
                try:
                    answer, _ = await self._cluster.leader_request(None, question, timeout=timeout)
                except TailraceError as error:
                    if not error.retriable or self._cluster.failure is not None:
                        self._fail_unidentified(error)
                        return
                    instruments.retried(error.code)
                    await anyio.sleep(backoff.next())
                else:
                    assert isinstance(answer, InitProducerIdResponse)
                    self.identity = Identity(answer.producer_id, answer.producer_epoch)
        finally:
            self._identifying = False
        self.pump_all()

    def _fail_unidentified(self, error: TailraceError) -> None:
        for outlet in self.by_leader.values():
            for lane in outlet.busy:
                if lane.identity is None:
                    for batch in lane.batches():
                        lane.give_up(batch)
                        self._owner.finish(batch, -1, -1, error)

    # ── connections and metadata ─────────────────────────────────────────────────────────────

    def _channel(self, outlet: Outlet) -> Channel | None:
        link = self._cluster.link(outlet.leader, "produce")
        if link is None:
            for lane in list(outlet.busy):
                self._owner.refresh(lane.topic)
            return None
        if link.channel is None and not outlet.connecting:
            outlet.connecting = True
            self._runtime.start_soon(self._connect, outlet)
        return link.channel

    async def _connect(self, outlet: Outlet) -> None:
        try:
            await self._cluster.channel(outlet.leader, "produce")
        except ConnectError:  # after max_outage the owner has been told already
            for lane in list(outlet.busy):
                self._owner.refresh(lane.topic)
            return
        finally:
            outlet.connecting = False
        self.pump(outlet)

    def _leader_gone(self, lane: Lane) -> None:
        """Another broker may lead by now; where there is only one, it is waited for."""
        if self._cluster.several and lane.leader is not None:
            self._cluster.doubt(lane.leader)
            self._owner.refresh(lane.topic)

    def trouble(self, lane: Lane) -> TailraceError | None:
        """Why nothing could be sent for the lane: it pauses after a refusal, nobody leads it, or
        the connection is why."""
        if self._runtime.clock.now() < lane.not_before:
            return lane.refusal
        if lane.leader is None:
            reason = "no broker leads it"
            return texts.partition_offline(lane.topic, lane.partition, reason=reason)
        link = self._cluster.link(lane.leader, "control")
        if link is None or link.channel is not None or not link.reason:
            return None
        return Lost(link.address, link.reason).error(0.0)

    def check_deadlines(self, now: float) -> float:
        """Close connections that owe an answer for too long; when to look again."""
        timeout = self._runtime.options.request_timeout
        due = math.inf
        for outlet in list(self.by_leader.values()):
            for sent in list(outlet.sent):
                if sent.at + timeout > now:
                    due = min(due, sent.at + timeout, self._check_slow(outlet, sent, now))
                    break
                sent.channel.close(f"no answer in {format_seconds(timeout)} s")
        return due

    def _check_slow(self, outlet: Outlet, oldest: Sent, now: float) -> float:
        """See now and then whether a leader that owes an answer still is one; when next."""
        if len(self._cluster.brokers) < 2:
            return math.inf
        due = max(oldest.at, outlet.looked_at) + SLOW_S
        if now < due:
            return due
        outlet.looked_at = now
        self._cluster.look_again(outlet.leader)
        return now + SLOW_S
