"""A compacted topic while its broker dies and comes back: the newest of every key stays (S26-S28).

Keys are few and segments small, so that cleaning is under way most of the time. The broker is
killed or loses power at moments of its own (a moment in the middle of a job counts as one before or
behind it: where exactly a swap may be cut is explored in tests/storage).
"""

from contextlib import suppress

import pytest
import trio

from tailrace.client.client import Client
from tailrace.protocol.errors import RequestTimeout
from tailrace.simulation.chance import seeded
from tailrace.simulation.run import SimCluster, run_cluster

TOPIC = "state"
KEYS = 12
ROUNDS = 6
SENDS = 60
CONFIG: dict[str, str | int | float | bool] = {
    "cleanup": "compact",
    "segment_size": "4KiB",
    "compaction_lag_max": "1s",
    "compaction_dirty_ratio": 0.3,
    "tombstone_retention": "1h",
}


async def read(client: Client) -> dict[bytes, tuple[int, bytes | None]]:
    """Offset and value of the last record of each key."""
    found: dict[bytes, tuple[int, bytes | None]] = {}
    async with client.consumer(TOPIC, stop_at_end=True) as consumer:
        async for record in consumer:
            assert record.key is not None
            assert record.key not in found or found[record.key][0] < record.offset
            found[record.key] = (record.offset, record.value)
    return found


async def read_on_and_on(client: Client, seen: dict[int, tuple[bytes, bytes | None]]) -> None:
    """From the start, again and again, while segments are replaced."""
    while True:
        at = -1
        with suppress(RequestTimeout):  # asked of a machine without power
            async with client.consumer(TOPIC, stop_at_end=True) as consumer:
                async for record in consumer:
                    assert record.key is not None
                    assert record.offset > at
                    at = record.offset
                    seen[at] = (record.key, record.value)
        await trio.sleep(0.2)


async def scenario(cluster: SimCluster) -> tuple[int, int]:
    """Returns how many records were sent and how many were left at the end."""
    rng = seeded(cluster.seed, "compaction")
    [node] = cluster.nodes.values()
    acked: dict[bytes, tuple[int, bytes | None]] = {}
    written: dict[int, tuple[bytes, bytes | None]] = {}
    sent = 0
    async with (
        cluster.client("one") as client,
        cluster.client("two") as reader,
        trio.open_nursery() as nursery,
    ):
        await client.admin.create_topic(TOPIC, config=CONFIG)
        seen: dict[int, tuple[bytes, bytes | None]] = {}
        nursery.start_soon(read_on_and_on, reader, seen)
        for _ in range(ROUNDS):
            async with client.producer(timeout=20.0) as producer:
                for _ in range(SENDS):
                    key = b"k%d" % rng.randrange(KEYS)
                    value = None if rng.random() < 0.1 else b"%d" % sent + bytes(rng.randrange(400))
                    made = await producer.send(TOPIC, value, key=key)
                    acked[key] = (made.offset, value)
                    written[made.offset] = (key, value)
                    sent += 1
                    await trio.sleep(rng.choice((0.0, 0.0, 0.05)))
            await trio.sleep(rng.uniform(0.0, 3.0))
            if rng.random() < 0.5:
                node.power_cut()
            else:
                node.kill()
            await node.start()
            assert node.failure is None
            assert await read(client) == acked
        await trio.sleep(60)
        assert await read(client) == acked
        left = 0
        async with client.consumer(TOPIC, stop_at_end=True) as consumer:
            async for _ in consumer:
                left += 1
        detail = await client.admin.describe_topic(TOPIC)
        compaction = detail.partition_list[0].compaction
        assert compaction is not None
        assert (compaction.state, compaction.last_error) == ("idle", None)
        nursery.cancel_scope.cancel()
    assert len(seen) > KEYS
    assert seen.items() <= written.items(), "what was once read never changes (S12)"
    return sent, left


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_newest_of_each_key_outlives_every_death(seed: int) -> None:
    outcome = run_cluster(scenario, seed=seed)
    sent, left = outcome.value
    assert sent == ROUNDS * SENDS
    assert left < KEYS * 4
