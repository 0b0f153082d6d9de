"""A cluster under faults: clients produce, read and share a group while brokers, disks, links and
the metadata store fail.

The fourth scenario: three brokers, sometimes four or five in racks, that keep three copies of each
partition; two to four topics, one of which is deleted and made anew again and again, while copies
and leaders are moved. At the end everything heals. Then every partition takes writes again in time
(L1), copies become equal, byte by byte (L3), the group reads to the end, a new reader drains all
topics, and what the clients did and saw is judged by nothing but their history; the judges of the
brokers' disks and of the metadata store have watched all the while.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Literal
from uuid import UUID

import trio

from tailrace.broker.catalog import PARTITIONS, Leadership, parse_partition_key
from tailrace.client.client import Client
from tailrace.protocol.errors import TailraceError
from tailrace.simulation.chance import seeded
from tailrace.simulation.checkers import Violation, check
from tailrace.simulation.history import History
from tailrace.simulation.kafka_history import Op, check as check_kafka
from tailrace.simulation.log_files import PartitionKey
from tailrace.simulation.run import SimCluster, run_cluster
from tailrace.simulation.seeding import Outcome
from tailrace.simulation.world import SESSION_S
from tests.simulation.cluster_chaos import ClusterChaos
from tests.simulation.scenario import Report
from tests.simulation.workload import Producing, Reading, drain, saw

LASTING, BRIEF, GROUP = ("orders", "payments", "refunds"), "brief", "billing"
WRITES_WITHIN_S = 2 * SESSION_S + 5.0  # L1
EQUAL_WITHIN_S = 60.0
READ_WITHIN_S = 60.0
END_S = 900.0
SETTINGS = {"topic.segment_size": "32KiB", "topic.max_record": "8KiB"}
SHOWN_OF_EACH = 3
OUTCOMES: dict[str, Literal["ok", "fail", "info"]] = {
    "acked": "ok",
    "refused": "fail",
    "unknown": "info",
    "open": "info",
}


@dataclass(frozen=True)
class Shape:
    """What kind of cluster a seed makes."""

    brokers: int
    racks: bool
    min_isr: str
    topics: tuple[str, ...]
    partitions: int
    chaos_s: float
    pace: float  # of each producer: calls per second

    @classmethod
    def of(cls, seed: int, *, brief: bool = False) -> "Shape":
        """``brief``: as small as it can be, for the tests of every commit."""
        rng = seeded(seed, "shape")
        brokers = 3 if brief else rng.choice((3, 3, 3, 3, 4, 5))
        return cls(
            brokers,
            brokers > 3 and rng.random() < 0.7,
            rng.choice(("auto", "auto", "auto", "1", "3")),
            LASTING[: 1 if brief else rng.randrange(1, 4)],
            1 if brief else rng.randrange(1, 4),
            rng.uniform(8.0, 16.0) if brief else rng.uniform(40.0, 90.0),
            rng.choice((1.0, 2.0, 4.0)),
        )

    def own(self, name: str) -> dict[str, str]:
        """Settings of one broker."""
        return {"broker.rack": f"rack{int(name[1:]) % 3}"} if self.racks else {}


def run_cluster_seed(seed: int) -> Outcome[Report]:
    """One world from beginning to end."""
    return _run_shape(seed, Shape.of(seed))


def run_brief_seed(seed: int) -> Outcome[Report]:
    """A small one."""
    return _run_shape(seed, Shape.of(seed, brief=True))


def _run_shape(seed: int, shape: Shape) -> Outcome[Report]:
    names = [f"n{number}" for number in range(1, shape.brokers + 1)]
    return run_cluster(
        lambda cluster: run(cluster, shape),
        seed=seed,
        brokers=shape.brokers,
        settings={**SETTINGS, "topic.min_isr": shape.min_isr},
        own={name: shape.own(name) for name in names},
    )


class Operator:
    """Makes a topic anew, moves copies and leaders, drains brokers, and takes that back."""

    def __init__(self, cluster: SimCluster, shape: Shape, rng: Random) -> None:
        self.done: dict[str, int] = {}
        self._cluster = cluster
        self._topics = (*shape.topics, BRIEF)
        self._partitions = shape.partitions
        self._rng = rng
        self._calls = 0
        ways: dict[str, Callable[[Client], Awaitable[object]]] = {
            "topic remade": self._remake,
            "copies moved": self._move,
            "moves cancelled": self._cancel,
            "leaders given back": self._elect,
            "broker drained": self._drain,
        }
        self._ways = {way: call for way, call in ways.items() if rng.random() < 0.4}

    async def until(self, end: float) -> None:
        """Ask for something every few seconds; whether it can be done just then or not."""
        while self._ways and trio.current_time() < end:
            await trio.sleep(self._rng.expovariate(0.2))
            way = self._rng.choice(list(self._ways))
            self._cluster.trace.note(way)
            self.done[way] = self.done.get(way, 0) + 1
            await self._try(self._ways[way])

    async def relent(self) -> None:
        """No broker is drained any more."""
        if "broker drained" in self._ways:
            await self._try(self._drain_none)

    async def finish(self) -> list[Violation]:
        """All copies come to where they shall be (L3)."""
        limit, moves = trio.current_time() + EQUAL_WITHIN_S, "nobody was asked"
        while moves and trio.current_time() < limit:
            await trio.sleep(0.5)
            try:
                async with self._cluster.client(self._name()) as client:
                    moves = ", ".join(map(repr, await client.admin.list_moves()))
            except TailraceError as error:
                moves = repr(error)
        return [Violation("L3", f"not moved in {EQUAL_WITHIN_S:g} s: {moves}")] if moves else []

    def _name(self) -> str:
        self._calls += 1
        return f"operator.{self._calls}"

    async def _try(self, call: Callable[[Client], Awaitable[object]]) -> None:
        try:
            async with self._cluster.client(self._name()) as client:
                await call(client)
        except TailraceError:
            return

    async def _remake(self, client: Client) -> None:
        await client.admin.delete_topic(BRIEF, missing_ok=True)
        await client.admin.create_topic(BRIEF, partitions=self._partitions, exist_ok=True)

    async def _move(self, client: Client) -> None:
        names = list(self._cluster.nodes)
        await client.admin.reassign(
            topics=[self._rng.choice(self._topics)], brokers=self._rng.sample(names, 3)
        )

    async def _cancel(self, client: Client) -> None:
        await client.admin.reassign(topics=self._topics, cancel=True)

    async def _elect(self, client: Client) -> None:
        await client.admin.elect_leaders()

    async def _drain_none(self, client: Client) -> None:
        for name in self._cluster.nodes:
            await client.admin.drain_broker(name, cancel=True)

    async def _drain(self, client: Client) -> None:
        name = self._rng.choice(list(self._cluster.nodes))
        await client.admin.drain_broker(name, cancel=self._rng.random() < 0.5)


async def run(cluster: SimCluster, shape: Shape) -> Report:
    history, rng = History(), seeded(cluster.seed, "cluster")
    cluster.net.delay_min = rng.uniform(0.0001, 0.005)
    cluster.net.delay_mean = rng.uniform(0.0001, 0.02)
    for node in cluster.nodes.values():
        node.buggify = rng.choice((0.0, 0.0, 1.0))
    lost = 0 if shape.min_isr == "1" else 1
    chaos = ClusterChaos(cluster, seeded(cluster.seed, "chaos"), disks_lost=lost)
    operator = Operator(cluster, shape, seeded(cluster.seed, "operator"))
    group = Group(cluster, history, shape)
    found: list[Violation] = []
    with trio.fail_after(END_S):
        await create_topics(cluster, shape)
        end = trio.current_time() + shape.chaos_s
        async with trio.open_nursery() as reading:
            for topic in shape.topics:
                name = f"r.{topic}"
                racks = (None, "rack0", "rack1") if shape.racks else (None,)
                reader = Reading(
                    *(cluster, history, topic, name, seeded(cluster.seed, name)),
                    lives_s=(10.0, 60.0),
                    racks=racks,
                )
                reading.start_soon(reader.for_ever)
            await group.start(reading)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(chaos.until, end)
                nursery.start_soon(operator.until, end)
                for topic in (*shape.topics, BRIEF):
                    name = f"p.{topic}"
                    producer = Producing(
                        *(cluster, history, topic, name, seeded(cluster.seed, name), shape.pace)
                    )
                    nursery.start_soon(producer.until, end)
            await operator.relent()
            found += await writes_again(cluster, history, shape)
            found += await operator.finish()
            found += await become_equal(cluster)
            found += await group.reads_all()
            reading.cancel_scope.cancel()
        found += await read_everything(cluster, history, shape)
    found = [*chaos.crashed, *judge(cluster, history, group), *found]
    assert cluster.common is not None
    return Report(
        chaos.struck,
        sum(node.starts for node in cluster.nodes.values()) - shape.brokers,
        len(history.sends),
        len(history.acked),
        len(history.reads),
        tuple(some_of_each(found)),
        {
            **cluster.common.store_judge.changes,
            "promises": cluster.common.judge.promises,
            **operator.done,
            "ops": len(history.sends) + len(history.reads),
        },
    )


async def create_topics(cluster: SimCluster, shape: Shape) -> None:
    async with cluster.client("creator") as client:
        for topic in (*shape.topics, BRIEF):
            await client.admin.create_topic(topic, partitions=shape.partitions)


class Group:
    """Members that share the first topic: every record is processed by one of them."""

    MEMBERS = 2

    def __init__(self, cluster: SimCluster, history: History, shape: Shape) -> None:
        self.names = [f"m{number}" for number in range(self.MEMBERS)]
        self.done: dict[tuple[str, int], set[int]] = {}
        self._cluster = cluster
        self._history = history
        self._topic = shape.topics[0]
        self._partitions = shape.partitions

    async def start(self, nursery: trio.Nursery) -> None:
        for name in self.names:
            nursery.start_soon(self._member, name, seeded(self._cluster.seed, name))

    async def _member(self, name: str, rng: Random) -> None:
        lives = 0
        while True:
            lives += 1
            try:
                async with self._cluster.client(f"{name}.{lives}") as client:
                    with trio.move_on_after(rng.uniform(10.0, 60.0)):
                        await self._use(client, name)
            except TailraceError:
                await trio.sleep(rng.random())

    async def _use(self, client: Client, name: str) -> None:
        async with client.consumer(
            self._topic,
            group=GROUP,
            session_timeout=6.0,
            rebalance_timeout=10.0,
            heartbeat="task",
            fetch_wait=1.0,
        ) as consumer:
            async for record in consumer:
                saw(self._history, name, record)
                where = record.topic, record.partition
                self.done.setdefault(where, set()).add(record.offset)

    async def reads_all(self) -> list[Violation]:
        """S25: after the faults every record of the topic is processed by some member."""
        assert self._cluster.common is not None
        limit, missing = trio.current_time() + READ_WITHIN_S, ""
        while trio.current_time() < limit:
            try:
                missing = await self._missing()
            except TailraceError as error:
                missing = repr(error)
            if not missing:
                return []
            await trio.sleep(0.5)
        return [Violation("S25", f"never processed in {READ_WITHIN_S:g} s: {missing}")]

    async def _missing(self) -> str:
        async with self._cluster.client("watcher") as client:
            detail = await client.admin.describe_topic(self._topic)
            key = UUID(detail.topic_id).bytes
        assert self._cluster.common is not None
        for number in range(self._partitions):
            end = self._cluster.common.judge.true_end((key, number))
            done = self.done.get((self._topic, number), set())
            left = sorted(set(range(end)) - done)
            if left:
                return f"{self._topic}[{number}] {left[:5]} of {end}"
        return ""


async def read_everything(cluster: SimCluster, history: History, shape: Shape) -> list[Violation]:
    """A new reader drains all topics. Nothing may keep it from that (L4)."""
    found: list[Violation] = []
    for topic in shape.topics:
        try:
            lost = await drain(cluster, history, topic, shape.partitions, "final")
        except TailraceError as error:
            found.append(Violation("L4", f"{topic} cannot be read to its end: {error!r}"))
        else:
            found += [Violation("R25", f"{topic}: {lost} is called corrupt")] if lost else []
    return found


async def writes_again(cluster: SimCluster, history: History, shape: Shape) -> list[Violation]:
    """L1: every partition takes a write, in time."""
    began, found = trio.current_time(), list[Violation]()

    async def write(topic: str, number: int) -> None:
        name = f"probe.{topic}.{number}"
        while trio.current_time() < began + WRITES_WITHIN_S:
            value = f"{name}-{trio.current_time()}-".encode()
            send = history.send(f"{name}.{trio.current_time()}", None, value, trio.current_time())
            try:
                async with (
                    cluster.client(f"{name}.{trio.current_time()}") as client,
                    client.producer(timeout=WRITES_WITHIN_S) as producer,
                ):
                    made = await producer.send(topic, value, partition=number)
            except TailraceError as error:
                send.failed(
                    trio.current_time(), maybe_written=getattr(error, "maybe_written", True)
                )
                await trio.sleep(0.5)
                continue
            send.acked(trio.current_time(), topic, number, made.offset)
            break
        took = trio.current_time() - began
        if took > WRITES_WITHIN_S:
            found.append(Violation("L1", f"{topic}[{number}] took no write in {took:.1f} s"))

    async with trio.open_nursery() as nursery:
        for topic in shape.topics:
            for number in range(shape.partitions):
                nursery.start_soon(write, topic, number)
    return found


async def become_equal(cluster: SimCluster) -> list[Violation]:
    """L3: all replicas are in sync and hold the same bytes."""
    limit, differs = trio.current_time() + EQUAL_WITHIN_S, list[str]()
    while trio.current_time() < limit:
        differs = [what for what in map(lambda one: different(cluster, *one), led(cluster)) if what]
        if not differs:
            return []
        await trio.sleep(0.5)
    return [Violation("L3", what) for what in differs]


def led(cluster: SimCluster) -> list[tuple[PartitionKey, Leadership]]:
    """What the metadata store says of all partitions."""
    assert cluster.common is not None
    return [
        (parse_partition_key(key), Leadership.from_json(entry.value, entry.revision))
        for key, entry in sorted(cluster.common.keep.entries.items())
        if key.startswith(PARTITIONS)
        and parse_partition_key(key) in cluster.common.judge.partitions
    ]


def different(cluster: SimCluster, key: PartitionKey, leadership: Leadership) -> str:
    """What keeps the replicas of a partition from being equal."""
    where = f"{key[0].hex()[:8]}[{key[1]}]"
    if {*leadership.isr} != {*leadership.replicas} or leadership.leader is None:
        return f"{where} is not in sync: {leadership}"
    assert cluster.common is not None
    if cluster.common.judge.partitions[key].compacted:
        return ""  # each replica compacts by itself
    logs = {name: cluster.common.logs[name].log(key).entries for name in leadership.replicas}
    held = {
        name: [entry.content.read(entry.size, entry.position) for entry in entries]
        for name, entries in logs.items()
    }
    ends = {name: entries[-1].next if entries else 0 for name, entries in logs.items()}
    first = held[leadership.replicas[0]]
    return "" if all(one == first for one in held.values()) else f"{where} differs: {ends}"


def judge(cluster: SimCluster, history: History, group: Group) -> list[Violation]:
    """Everything that is wrong, by those who watched, and by the history of the clients."""
    assert cluster.common is not None
    found = list(cluster.common.judge.violations)
    for node in cluster.nodes.values():
        found += node.oracle.violations
    lasting = History(
        [send for send in history.sends if not send.value.startswith(b"p.brief")],
        [read for read in history.reads if read.topic != BRIEF],
    )
    assigned = [read for read in lasting.reads if read.reader not in group.names]
    found += check(History(lasting.sends, assigned), history.final("final"))
    known = {violation.invariant for violation in found}
    for finding in check_kafka(operations(lasting, group.names), drained=True):
        # Most of what one finds the other does, too: one of each kind is told.
        if finding.kind not in known:
            known.add(finding.kind)
            found.append(Violation(finding.kind, finding.what))
    return found


def some_of_each(found: list[Violation]) -> list[Violation]:
    """A lost record breaks many promises many times: a few of each tell what there is."""
    counts: dict[str, int] = {}
    kept: list[Violation] = []
    for one in found:
        counts[one.invariant] = counts.get(one.invariant, 0) + 1
        if counts[one.invariant] <= SHOWN_OF_EACH:
            kept.append(one)
    return kept


def operations(history: History, subscribed: list[str]) -> list[Op]:
    """The history as operations: one record each."""
    places = {read.value: read.where for read in history.reads}
    ops = [Op(name, "subscribe", "ok", 0.0, 0.0) for name in subscribed]
    for send in history.sends:
        acked = send.outcome == "acked"
        where = send.where if acked else places.get(send.value, send.where)
        ops.append(
            Op(
                send.producer,
                "send",
                OUTCOMES[send.outcome],
                send.began_at,
                send.ended_at,
                sent=((where, send.value, send.offset if acked else None),),
            )
        )
    ops += [
        Op(
            read.reader,
            "poll",
            "ok",
            read.at,
            read.at,
            polled=((read.where, read.offset, read.value),),
        )
        for read in history.reads
    ]
    return sorted(ops, key=lambda op: op.began_at)
