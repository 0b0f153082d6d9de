"""Deletions in a compacted topic, while replicas are away for longer than tombstones stay (S27).

The fifth scenario: keys are written and deleted, one call after the other; brokers stay away for a
while, one at a time, and come back; leaders change. Whatever happens, a key that was deleted stays
deleted, and a key that was written has its last value, for who reads all of the log at the end.
"""

from collections.abc import Iterator
from random import Random

import trio

from tailrace.client.records import Record
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.shapes import TopicPartition
from tailrace.simulation.chance import seeded
from tailrace.simulation.checkers import Violation
from tailrace.simulation.run import SimCluster, run_cluster
from tailrace.simulation.seeding import Outcome
from tailrace.simulation.world import SimNode
from tests.simulation.cluster import become_equal, led
from tests.simulation.crash_model import small_scale
from tests.simulation.scenario import Report

TOPIC = "latest"
KEYS = [f"k{number}".encode() for number in range(300)]  # most are written a few times only
LED_WITHIN_S = 60.0
RETENTION_S = 4.0
ROUGH_S = 60.0
END_S = 400.0
CONFIG: dict[str, str | float] = {
    "cleanup": "compact",
    "compaction_lag_max": "1s",
    "compaction_dirty_ratio": 0.1,
    "tombstone_retention": f"{RETENTION_S:.0f}s",
    "segment_age": "2s",
}
SETTINGS = {"topic.segment_size": "16KiB", "topic.max_record": "8KiB"}

Last = dict[bytes, tuple[bytes | None, bool]]  # of each key: what was sent last, whether acked


def run_tombstones(seed: int) -> Outcome[Report]:
    """One world from beginning to end."""
    with small_scale():
        return run_cluster(run, seed=seed, brokers=3, settings=SETTINGS)


async def run(cluster: SimCluster) -> Report:
    assert cluster.common is not None
    rng = seeded(cluster.seed, "tombstones")
    last: Last = {}
    counts, records = {"sent": 0, "acked": 0, "away": 0}, 0
    with trio.fail_after(END_S):
        async with cluster.client("creator") as client:
            await client.admin.create_topic(TOPIC, partitions=1, config=CONFIG)
        end = trio.current_time() + ROUGH_S
        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_away, cluster, rng, end, counts)
            await write(cluster, seeded(cluster.seed, "writer"), end, last, counts)
        found = await become_equal(cluster)
        await trio.sleep(3 * RETENTION_S)  # what may go now does
        for node in cluster.nodes.values():
            await let_lead(cluster, node)
            log = await read(cluster)
            found += judge(last, log, node.name)
            records += len(log)
    found += cluster.common.judge.violations
    for node in cluster.nodes.values():
        found += node.oracle.violations
    return Report(
        {"away": counts["away"]}, counts["away"], counts["sent"], counts["acked"], records,
        tuple(found), dict(cluster.common.store_judge.changes),
    )  # fmt: skip


async def be_away(cluster: SimCluster, rng: Random, end: float, counts: dict[str, int]) -> None:
    """One broker after the other is away, mostly for longer than tombstones are kept."""
    while trio.current_time() < end:
        await trio.sleep(rng.expovariate(0.3))
        node: SimNode = rng.choice(list(cluster.nodes.values()))
        counts["away"] += 1
        node.kill()
        await trio.sleep(rng.uniform(0.5, 5.0) * RETENTION_S)
        while not node.running:
            await node.start()


async def write(
    cluster: SimCluster, rng: Random, end: float, last: Last, counts: dict[str, int]
) -> None:
    """Values and deletions of keys, one after the other."""
    lives = 0
    while trio.current_time() < end:
        lives += 1
        try:
            async with (
                cluster.client(f"writer.{lives}") as client,
                client.producer(timeout=10.0) as producer,
            ):
                while trio.current_time() < end:
                    key = rng.choice(KEYS)
                    counts["sent"] += 1
                    value = f"v{counts['sent']}".encode() * 20 if rng.random() < 0.6 else None
                    last[key] = value, False
                    await producer.send(TOPIC, value, key=key)
                    last[key] = value, True
                    counts["acked"] += 1
                    await trio.sleep(rng.expovariate(20.0))
        except TailraceError:
            await trio.sleep(rng.random())


async def let_lead(cluster: SimCluster, node: SimNode) -> None:
    """Everybody else is gone until this broker leads the topic; then they come back."""
    others = [other for other in cluster.nodes.values() if other is not node]
    for other in others:
        other.kill()
    with trio.fail_after(LED_WITHIN_S):
        await leads(cluster, node)
        for other in others:
            await other.ended()
            while not other.running:
                await other.start()


async def leads(cluster: SimCluster, node: SimNode) -> None:
    """Wait until the metadata store says that a broker leads the first partitions."""
    while any(  # noqa: ASYNC110 (nothing here is told of it)
        one.leader != node.name for key, one in led(cluster) if key[1] == 0
    ):
        await trio.sleep(0.5)


async def read(cluster: SimCluster) -> list[Record[bytes, bytes]]:
    """All of the log, as a new reader sees it."""
    async with (
        cluster.client("reader") as client,
        client.consumer(partitions=[TopicPartition(TOPIC, 0)], stop_at_end=True) as consumer,
    ):
        return [record async for record in consumer]


def judge(last: Last, log: list[Record[bytes, bytes]], node: str) -> Iterator[Violation]:
    """S26, S27 in one broker's copy. Of a key whose last call has no answer nothing follows."""
    state = {record.raw_key: record.raw_value for record in log}
    for key, (value, acked) in sorted(last.items()):
        found = state.get(key)
        if acked and found != value:
            was = "deleted" if value is None else "changed"
            what = f"{key!r} is {(found or b'gone')[:24]!r} on {node}, it was {was}"
            yield Violation("S27" if value is None else "S26", what)
