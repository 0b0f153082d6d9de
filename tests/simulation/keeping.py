"""Records expire, are compacted, deleted and erased, and topics come and go, under faults.

The second scenario: one topic with a short retention, one that is compacted, one of which keys are
erased, and one that is deleted and made anew under its name again and again; all with segments of
16 KiB, so that there is always something to remove. Besides crashes, power cuts and a bad network
the wall clock is stepped by minutes to weeks, and the metadata store goes away. At the end
everything heals, is read to the end, and ``judge_keeping`` says what should not be gone, and what
should not be there.
"""

from collections.abc import Awaitable, Callable
from random import Random
from uuid import UUID

import trio

from tailrace.client.client import Client
from tailrace.protocol.errors import TailraceError
from tailrace.simulation.chance import seeded
from tailrace.simulation.history import History
from tailrace.simulation.run import SimCluster, run_cluster
from tailrace.simulation.seeding import Outcome
from tests.simulation.chaos import Chaos
from tests.simulation.crash_model import small_scale
from tests.simulation.judge_keeping import (
    BRIEF,
    FLEETING,
    LATEST,
    PEOPLE,
    RETENTION_S,
    Deletion,
    Erasure,
    Life,
    Removals,
    judge,
)
from tests.simulation.scenario import Report
from tests.simulation.workload import KEYS, Producing, Reading, drain

PARTITIONS = 2
CHAOS_S = 20.0
END_S = 600.0
TOPICS: dict[str, dict[str, str | float]] = {
    FLEETING: {"retention": f"{RETENTION_S:.0f}s"},
    LATEST: {"cleanup": "compact", "compaction_lag_max": "2s", "compaction_dirty_ratio": 0.1},
    PEOPLE: {},
}
SETTINGS = {"topic.segment_size": "16KiB", "topic.max_record": "8KiB"}
WITHOUT = ("rot", "full")  # damaged records cannot be compacted; a full disk is another matter


class Removing:
    """An administrator, who has things removed in every way there is."""

    def __init__(self, cluster: SimCluster, history: History, rng: Random) -> None:
        self.asked = Removals()
        self._cluster = cluster
        self._history = history
        self._rng = rng
        self._clients = 0

    async def until(self, end: float) -> None:
        """Ask for something every few seconds."""
        ways: tuple[Callable[[Client], Awaitable[None]], ...] = (
            *(self._erase, self._delete_records, self._recreate),
        )
        while trio.current_time() < end:
            await trio.sleep(self._rng.expovariate(0.7))
            await self._try(self._rng.choice(ways))

    async def finish(self) -> None:
        """After the faults: what may or may not have been done is done now."""
        for unsure in [one for one in self.asked.erasures if one.done_at is None]:
            async with self._cluster.client(f"finish{unsure.began_at}") as client:
                await self._erase_key(client, unsure.key, timeout=60.0)
        async with self._cluster.client("finish") as client:
            await self._recreate(client)

    async def _try(self, what: Callable[[Client], Awaitable[None]]) -> None:
        self._clients += 1
        try:
            async with self._cluster.client(f"admin.{self._clients}") as client:
                await what(client)
        except TailraceError:
            return

    async def _erase(self, client: Client) -> None:
        key = self._rng.choice([key for key in KEYS[:4] if key is not None])
        await self._erase_key(client, key, timeout=8.0)

    async def _erase_key(self, client: Client, key: bytes, *, timeout: float) -> None:
        asked = Erasure(key, trio.current_time())
        self.asked.erasures.append(asked)
        receipt = await client.admin.erase(PEOPLE, keys=[key], timeout=timeout)
        if receipt.completed_at is not None:
            asked.done_at = trio.current_time()

    async def _delete_records(self, client: Client) -> None:
        acked = [send for send in self._history.acked if send.topic == FLEETING]
        if acked:
            send = self._rng.choice(acked)
            self.asked.deletions.append(Deletion(send.partition, send.offset))
            await client.admin.delete_records(FLEETING, {send.partition: send.offset})

    async def _recreate(self, client: Client) -> None:
        """A topic under the name of one that was deleted is another topic (S30)."""
        began_at = trio.current_time()
        await client.admin.delete_topic(BRIEF, missing_ok=True)
        life = Life(began_at)
        await client.admin.create_topic(BRIEF, partitions=PARTITIONS, exist_ok=True)
        self.asked.lives.append(life)


def run_keeping(seed: int) -> Outcome[Report]:
    """One world from beginning to end."""
    with small_scale():
        return run_cluster(run, seed=seed, settings=SETTINGS)


async def run(cluster: SimCluster) -> Report:
    history = History()
    rng = seeded(cluster.seed, "keeping")
    cluster.net.delay_min = rng.uniform(0.0001, 0.01)
    cluster.net.delay_mean = rng.uniform(0.0001, 0.03)
    [node] = cluster.nodes.values()
    node.buggify = rng.choice((0.0, 1.0))
    chaos = Chaos(cluster, history, seeded(cluster.seed, "chaos"), WITHOUT)
    removing = Removing(cluster, history, seeded(cluster.seed, "removing"))
    with trio.fail_after(END_S):
        topics = await create_topics(cluster)
        async with trio.open_nursery() as reading:
            for topic in (FLEETING, LATEST):
                name = f"r.{topic}"
                reader = Reading(cluster, history, topic, name, seeded(cluster.seed, name))
                reading.start_soon(reader.for_ever)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(chaos.until, CHAOS_S)
                nursery.start_soon(removing.until, CHAOS_S)
                for topic in (*TOPICS, BRIEF):
                    name = f"p.{topic}"
                    producer = Producing(cluster, history, topic, name, seeded(cluster.seed, name))
                    nursery.start_soon(producer.until, CHAOS_S)
            reading.cancel_scope.cancel()
        await removing.finish()
        for topic in (*TOPICS, BRIEF):
            lost = await drain(cluster, history, topic, PARTITIONS, "final")
            assert not lost, f"{topic} has damaged records: {sorted(lost)[:3]}"
    starts = [
        (at, partition, start)
        for at, (topic_id, partition), start in node.oracle.log_starts
        if topic_id == topics[FLEETING]
    ]
    violations = judge(
        history,
        history.final("final"),
        removing.asked,
        starts,
        trio.current_time(),
    )
    return Report(
        dict(chaos.struck),
        chaos.crashes,
        len(history.sends),
        len(history.acked),
        len(history.reads),
        (*node.oracle.violations, *violations),
    )


async def create_topics(cluster: SimCluster) -> dict[str, bytes]:
    """Their ids, by name."""
    async with cluster.client("creator") as client:
        made = [
            await client.admin.create_topic(topic, partitions=PARTITIONS, config=config)
            for topic, config in TOPICS.items()
        ]
    return {topic.name: UUID(topic.topic_id).bytes for topic in made}
