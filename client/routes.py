"""Where the records of a producer go: its topics' partitions, asked for at the first record.

``enqueue_nowait`` cannot wait for that: what it takes before the partitions are known is kept
here, in order, and placed the moment they are.
"""

from collections.abc import Sequence
from typing import Protocol

import anyio

from tailrace.client.accumulator import WINDOW, Lane, PendingBatch, TopicRoute
from tailrace.client.cluster import Cluster
from tailrace.client.delivery import Delivery, Unrouted, UnroutedRecord
from tailrace.client.producer_options import ProducerOptions
from tailrace.client.retry import Backoff
from tailrace.client.room import Room
from tailrace.client.runtime import Runtime
from tailrace.protocol import texts, texts_client
from tailrace.protocol.batch import RecordHeaders
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import TopicMetadata


class Taker(Protocol):
    """The sender."""

    def append(
        self,
        lane: Lane,
        value: bytes | None,
        key: bytes | None,
        timestamp: int,
        headers: RecordHeaders,
        size: int,
    ) -> tuple[PendingBatch, int]:
        """Accept one record."""
        ...

    def soon(self, lane: Lane) -> None:
        """A batch was begun by somebody who does not wait for it."""
        ...

    def remember(self, batch: PendingBatch) -> None:
        """A batch failed before it had a lane."""
        ...


class Routes:
    """The topics of one producer."""

    def __init__(
        self,
        runtime: Runtime,
        cluster: Cluster,
        options: ProducerOptions,
        room: Room,
        taker: Taker,
    ) -> None:
        self.by_topic: dict[str, TopicRoute] = {}
        self.unrouted: dict[str, Unrouted] = {}
        self._runtime = runtime
        self._cluster = cluster
        self._options = options
        self._room = room
        self._taker = taker

    async def find(self, topic: str) -> TopicRoute:
        """The topic's partitions, waiting for them up to ``timeout`` seconds.

        Raises TopicNotFound T010, SendTimeout T020, ConnectError T005. Cancelled: nothing was
        accepted.
        """
        clock = self._runtime.clock
        began = clock.now()
        last: TailraceError | None = None
        with anyio.move_on_after(self._options.timeout):
            while topic not in self.by_topic:
                try:
                    self._adopt(await self._cluster.topic(topic, auto_create=True))
                except TailraceError as error:
                    if not error.retriable or self._cluster.failure is not None:
                        raise
                    last = error
        if topic not in self.by_topic:
            raise texts_client.send_timeout(
                topic,
                None,
                elapsed_s=clock.now() - began,
                attempts=0,
                last_error=last,
                maybe_written=False,
            )
        return self.by_topic[topic]

    def _adopt(self, topic: TopicMetadata) -> None:
        if topic.name in self.by_topic:
            return
        window = WINDOW if self._options.idempotent else 1  # order needs sequences (C2)

        def new_lane(partition: int) -> Lane:
            backoff = Backoff(self._runtime.random)
            return Lane(topic.name, topic.topic_id, partition, window, backoff)

        self.by_topic[topic.name] = TopicRoute(topic, new_lane)
        self._place(topic.name)

    def update(self) -> list[tuple[Lane, str | None]]:
        """Take in what the cluster knows by now; the lanes that moved, with their old leaders."""
        moved: list[tuple[Lane, str | None]] = []
        for route in self.by_topic.values():
            topic = self._cluster.known(route.name)
            if topic is not None and topic is not route.metadata:
                before = [(lane, lane.leader) for lane in route.lanes]
                route.update(topic)
                moved += [(lane, leader) for lane, leader in before if lane.leader != leader]
        return moved

    # ── records whose topic is not known yet ─────────────────────────────────────────────────

    def defer(self, topic: str, record: UnroutedRecord) -> Delivery:
        """Accept a record all the same. There must be room."""
        unrouted = self.unrouted.get(topic)
        if unrouted is None:
            unrouted = self.unrouted[topic] = Unrouted(topic, self._runtime.clock.now())
            self._runtime.start_soon(self._find_deferred, topic)
        self._room.used += record.size
        return unrouted.add(record)

    async def _find_deferred(self, topic: str) -> None:
        try:
            await self.find(topic)
        except TailraceError as error:
            self.fail_deferred(topic, error)

    def _place(self, topic: str) -> None:
        unrouted = self.unrouted.pop(topic, None)
        if unrouted is None:
            return
        route = self.by_topic[topic]
        for record, delivery in zip(unrouted.records, unrouted.deliveries, strict=True):
            self._room.used -= record.size
            try:
                check_size(route, record.size)
                lane = route.lane(record.partition, record.key)
            except TailraceError as error:
                self._fail(topic, [record], [delivery], error)
                continue
            batch, delivery.index = self._taker.append(
                lane, record.value, record.key, record.timestamp, record.headers, record.size
            )
            batch.accepted_at = min(batch.accepted_at, unrouted.accepted_at)
            delivery.batch = batch
            if delivery.index == 0:
                self._taker.soon(lane)
        self._room.serve()
        unrouted.tell()

    def fail_deferred(self, topic: str, error: TailraceError) -> None:
        """Nobody will ever know that topic's partitions."""
        unrouted = self.unrouted.pop(topic, None)
        if unrouted is not None:
            self._fail(topic, unrouted.records, unrouted.deliveries, error)
            self._room.release(unrouted.size)
            unrouted.tell()

    def _fail(
        self,
        topic: str,
        records: Sequence[UnroutedRecord],
        deliveries: Sequence[Delivery],
        error: TailraceError,
    ) -> None:
        nowhere = Lane(topic, bytes(16), -1, 1, Backoff(self._runtime.random))
        batch = PendingBatch(nowhere, -1, self._runtime.clock.now(), 0)
        for record, delivery in zip(records, deliveries, strict=True):
            delivery.index = batch.add(None, None, record.timestamp, (), 0)
            delivery.batch = batch
        batch.finish(-1, -1, error)
        self._taker.remember(batch)


def check_size(route: TopicRoute, size: int) -> None:
    """Raise RecordTooLarge T021. ``size`` in bytes without overhead."""
    if size > route.record_bytes_max:
        raise texts.record_too_large(route.name, size=size, limit=route.record_bytes_max)
