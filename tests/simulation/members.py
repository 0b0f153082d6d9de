"""What the members of a group do in a scenario: read in every way there is, commit, come and go.

A member is a place that one process after the other takes: each with a client of its own, on a host
of its own, that can be frozen and killed. A record counts as processed (``GroupOracle.done``) when
the member's code is through with it, as a user's code would be: before it asks for the next one.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Literal, TypedDict

import trio

from tailrace.client.consumer import Consumer, PartitionStream
from tailrace.client.records import Record
from tailrace.protocol.errors import PartitionLost, TailraceError, UsageError
from tailrace.protocol.shapes import TopicPartition
from tailrace.simulation.freeze import FreezableClient, Freezer
from tailrace.simulation.group_oracle import GroupOracle
from tailrace.simulation.history import History
from tailrace.simulation.life import Life
from tailrace.simulation.run import SimCluster
from tests.simulation.workload import saw

GROUP = "billing"
SESSION_S = 2.0
REBALANCE_S = 4.0

Bytes = Consumer[bytes, bytes]
Way = Callable[[Bytes], Awaitable[None]]


class Choice(TypedDict):
    """Options of a consumer that a life chooses."""

    commit: Literal["after", "manual"]
    commit_interval: float
    max_processing: float | None


@dataclass
class World:
    """What all members share."""

    cluster: SimCluster
    history: History
    oracle: GroupOracle
    rough: bool = True  # faults go on: processing may take long, positions may jump


@dataclass
class Process:
    """One life of a member."""

    life: Life
    freezer: Freezer
    scope: trio.CancelScope
    reading: trio.CancelScope
    consumer: Bytes | None = None


class Member:
    """See the module."""

    def __init__(
        self, world: World, name: str, rng: Random, topics: tuple[str, ...], instance_id: str | None
    ) -> None:
        self.name = name
        self.staying = True  # it comes back after whatever ended it
        self.process: Process | None = None
        self.errors: list[TailraceError] = []  # that ended a life
        self._world = world
        self._rng = rng
        self._topics = topics
        self._instance_id = instance_id
        self._lives = 0
        self.gone = trio.Event()  # it stays away
        self._wanted = trio.Event()

    # ── what may happen to it ────────────────────────────────────────────────────────────────

    def come(self) -> None:
        """Be there, from now on."""
        self.staying = True
        self._wanted.set()

    def go(self) -> None:
        """Leave gracefully, and stay away."""
        self.staying = False
        if self.process is not None:
            self.process.reading.cancel()

    def crash(self) -> None:
        """The process ends at once; the next one comes when it is wanted."""
        process = self.process
        if process is not None and not process.life.dead:
            process.life.dead = True
            self._world.cluster.net.process_died(process.life)
            process.freezer.thaw()
            process.scope.cancel()

    @property
    def consumer(self) -> Bytes | None:
        """Of its present life, if it has joined."""
        return None if self.process is None else self.process.consumer

    async def for_ever(self) -> None:
        """One life after the other, until cancelled."""
        while True:
            if not self.staying:
                self.gone.set()
                self._wanted = trio.Event()
                await self._wanted.wait()
                self.gone = trio.Event()
            self._lives += 1
            life, freezer = Life(f"{self.name}.{self._lives}"), Freezer()
            with trio.CancelScope() as scope:
                self.process = process = Process(life, freezer, scope, trio.CancelScope())
                try:
                    await freezer.drive(self._live(process))
                except TailraceError as error:
                    self.errors.append(error)
                except BaseException:
                    if not life.dead:  # whatever a dead process raises has no meaning
                        raise
            self.process = None
            await trio.sleep(self._rng.random())

    # ── one life ─────────────────────────────────────────────────────────────────────────────

    async def _live(self, process: Process) -> None:
        rng = self._rng
        client = self._world.cluster.process(
            FreezableClient, process.life, close_timeout=rng.choice((1.0, 5.0))
        )
        client.freezer = process.freezer
        ways: tuple[Way, ...] = (
            *(self._records, self._batches, self._by_hand, self._run, self._streams),
        )
        way = rng.choice(ways)
        choice = Choice(
            commit="manual" if way == self._by_hand else "after",
            commit_interval=rng.choice((0.0, 0.1, 0.5, 1.0)),
            max_processing=rng.choice((None, None, 1.5)),
        )
        async with (
            client,
            client.consumer(
                *self._topics,
                group=GROUP,
                instance_id=self._instance_id,
                session_timeout=SESSION_S,
                rebalance_timeout=REBALANCE_S,
                heartbeat="task",
                fetch_wait=1.0,
                close_timeout=rng.choice((1.0, 5.0)),
                **choice,
            ) as consumer,
        ):
            process.consumer = consumer
            try:
                with process.reading:
                    while True:
                        with suppress(PartitionLost):
                            await way(consumer)
            finally:
                process.consumer = None

    async def _records(self, consumer: Bytes) -> None:
        async for record in consumer:
            await self._handle(consumer, record)
            if self._world.rough and self._rng.random() < 0.01:
                await self._seek(consumer)

    async def _batches(self, consumer: Bytes) -> None:
        async for batch in consumer.batches(max_records=20, max_wait=0.05):
            at = TopicPartition(batch.topic, batch.partition)
            epoch = self._epoch(consumer, at)
            for record in batch:
                self._read(record, epoch)
            await self._work()
            for record in batch:
                self._done(record)

    async def _by_hand(self, consumer: Bytes) -> None:
        records = aiter(consumer)
        while True:
            record: Record[bytes, bytes] | None = None
            with trio.move_on_after(0.5):  # nothing is lost by that
                record = await anext(records)
            if record is not None:
                await self._handle(consumer, record)
            if record is None or self._rng.random() < 0.1:
                await consumer.commit()
            elif self._rng.random() < 0.1:
                at = TopicPartition(record.topic, record.partition)
                with suppress(UsageError):  # it is not assigned any more
                    await consumer.commit({at: record.offset + 1})

    async def _run(self, consumer: Bytes) -> None:
        async def handle(record: Record[bytes, bytes]) -> None:
            saw(self._world.history, self.name, record)
            await self._work()
            self._done(record)

        orders: tuple[Literal["key", "partition"], ...] = ("key", "partition")
        order = self._rng.choice(orders)
        await consumer.run(handle, in_flight=8, order=order, signals=False)

    async def _streams(self, consumer: Bytes) -> None:
        try:
            async with trio.open_nursery() as nursery:
                async for stream in consumer.partitions():
                    nursery.start_soon(self._stream, consumer, stream)
        except BaseExceptionGroup as group:  # several streams may fail of the same
            if group.split(TailraceError)[1] is not None:
                raise
            # Not in an ``except*``: on Python 3.11.2 what is raised there is in a group again.
            raise first(group) from None

    async def _stream(self, consumer: Bytes, stream: PartitionStream[bytes, bytes]) -> None:
        with suppress(PartitionLost):
            async for record in stream:
                await self._handle(consumer, record)

    # ── steps ────────────────────────────────────────────────────────────────────────────────

    async def _handle(self, consumer: Bytes, record: Record[bytes, bytes]) -> None:
        self._read(record, self._epoch(consumer, TopicPartition(record.topic, record.partition)))
        await self._work()
        self._done(record)

    def _epoch(self, consumer: Bytes, at: TopicPartition) -> int:
        """Of the assignment under which something was handed out just now."""
        assert consumer.feed.group is not None
        holding = consumer.feed.group.find(at)
        assert holding is not None, f"{self.name} was handed a record of {at}, which it has not"
        return holding.assignment.assignment_epoch

    def _read(self, record: Record[bytes, bytes], epoch: int) -> None:
        saw(self._world.history, self.name, record)
        process = self.process
        assert process is not None
        where = record.topic, record.partition
        self._world.oracle.read(
            trio.current_time(), GROUP, process.life.name, where, epoch, record.offset
        )

    def _done(self, record: Record[bytes, bytes]) -> None:
        self._world.oracle.done[record.topic, record.partition].add(record.offset)

    async def _work(self) -> None:
        """What a record costs; now and then far too much."""
        rng = self._rng
        if self._world.rough and rng.random() < 0.003:
            await trio.sleep(rng.uniform(SESSION_S, 1.5 * REBALANCE_S))
        elif rng.random() < 0.3:
            await trio.sleep(rng.expovariate(100.0))

    async def _seek(self, consumer: Bytes) -> None:
        """Back by some records, in one partition."""
        if not consumer.assignment:
            return
        at = self._rng.choice(sorted(consumer.assignment))
        with suppress(UsageError):
            to = max(0, consumer.position(at) - self._rng.randrange(10))
            await consumer.seek(at, to)
            epoch = self._epoch(consumer, at)
            process = self.process
            assert process is not None
            self._world.oracle.sought(process.life.name, (at.topic, at.partition), epoch, to)


def first(error: BaseException) -> BaseException:
    """Any one of a group's."""
    return first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
