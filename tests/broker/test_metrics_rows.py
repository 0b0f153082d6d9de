"""Every metric that docs/metrics.md promises is there, of its type, and is driven to change.

A scenario uses a broker as one is used, and says which metrics it moves; a metric that none moves,
and that is not told to stand still below, fails ``test_every_metric_is_driven``.
"""

import io
import shutil
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

import tailrace
from tailrace.broker.config import Sources
from tailrace.broker.logs import LogHandler, as_json
from tailrace.broker.metric_table import TABLE
from tailrace.broker.process import Process
from tailrace.broker.world import World
from tailrace.protocol.errors import MetadataUnavailable
from tailrace.storage.disk import OsDisk
from tests.broker import compacting, erasing
from tests.broker.compacting import EAGER
from tests.broker.harness import config, connected, fetch_request, run, serving
from tests.broker.members import Member, commit, committing
from tests.broker.metrics_contract import BATCHES, SECONDS, promises
from tests.broker.scraping import Scrape, changed, scrape
from tests.broker.test_topics import LosesReplies, create, losing
from tests.broker.watching import watched

BROKERS = {name: one for name, one in promises().items() if not name.startswith("client_")}
FOLLOWED = {"replica_lag_records"}  # a single node has no followers, and no series of them
# What a single node shows, always; the last stands for the lock on the data directory.
STILL = {
    "build_info": 1.0,
    "isr_changes_total": 0.0,
    "partitions_under_replicated": 0.0,
    "partitions_below_min_isr": 0.0,
    "metadata_lease_remaining_seconds": float("inf"),
}

Use = Callable[[Path], Awaitable[tuple[Scrape, Scrape]]]


class Scenario(NamedTuple):
    """``use`` gives a scrape of before and one of after."""

    use: Use
    moves: frozenset[str]


SCENARIOS: list[Scenario] = []


async def until(true: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if true():
            return
        await trio.sleep(0.001)
    raise AssertionError("it did not come to that")


def moves(*names: str) -> Callable[[Use], Use]:
    """These are other ones after it."""

    def note(use: Use) -> Use:
        SCENARIOS.append(Scenario(use, frozenset(names)))
        return use

    return note


@moves(
    *("requests_total", "request_duration_seconds", "connections", "sent_bytes_total"),
    *("received_bytes_total", "topic_records_in_total", "topic_bytes_in_total", "segments"),
    *("topic_bytes_out_total", "topic_size_bytes", "old_timestamps_total", "weak_acks_total"),
    *("topics_weak_durability", "partitions", "partitions_leader", "partition_log_end"),
    *("partition_high_watermark", "partition_size_bytes", "append_duration_seconds"),
    *("fsync_duration_seconds", "fsync_batches", "elections_total", "broker_uptime_seconds"),
    "metadata_request_duration_seconds",
)
async def produce_and_consume(path: Path) -> tuple[Scrape, Scrape]:
    async with serving(path) as (server, ready):
        before = await scrape(server)
        async with tailrace.connect(ready.url) as client:
            await client.admin.create_topic("orders", partitions=2, config={"durability": "os"})
            await client.admin.create_topic("bills", partitions=1)
            async with client.producer() as producer:
                await producer.send("bills", b"old", timestamp=1)
            async with client.producer(acks=1, idempotent=False) as producer:
                await producer.send("orders", b"weak")
            async with client.consumer("bills", start="earliest", stop_at_end=True) as consumer:
                assert [record.value async for record in consumer] == [b"old"]
            return before, await scrape(server)


@moves("requests_in_flight", "request_memory_bytes")
async def wait_for_records(path: Path) -> tuple[Scrape, Scrape]:
    async with serving(path) as (server, ready), connected(ready) as client:
        topic_id = await client.create("orders")
        before = await scrape(server)
        await client.send(fetch_request(topic_id, wait_ms=20_000))
        await client.metadata()
        return before, await scrape(server)


class Shrinking(OsDisk):
    free_bytes: int | None = None

    def usage(self, path: str) -> tuple[int, int]:
        free, capacity = super().usage(path)
        return (free if self.free_bytes is None else self.free_bytes), capacity


@moves("disk_free_bytes", "disk_read_only", "broker_state")
async def fill_the_disk(path: Path) -> tuple[Scrape, Scrape]:
    disk = Shrinking()

    def change(world: World) -> World:
        return replace(world, disk=disk)

    async with serving(path, {"storage.min_free": "1MiB"}, change) as (server, _):
        before = await scrape(server)
        disk.free_bytes = 4_096
        server.clean_now()
        await until(lambda: bool(server.health.disk_low))
        return before, await scrape(server)


@moves(
    *("partitions_offline", "data_loss_possible_total", "recovery_truncated_bytes_total"),
    *("recovery_duration_seconds", "corrupt_batches_total"),
)
async def start_on_a_damaged_disk(path: Path) -> tuple[Scrape, Scrape]:
    async with serving(path) as (server, ready), connected(ready) as client:
        topic_id = await client.create("orders", partitions=3)
        for number in range(3):
            await client.produce(topic_id, [b"a" * 100], number)
            await client.produce(topic_id, [b"b" * 100], number)
        before = await scrape(server)
    topics = path / "data" / "topics"
    (path / "data" / "clean").unlink()
    shutil.rmtree(next(topics.glob("*-0")))
    torn, flipped = (next(next(topics.glob(f"*-{n}")).glob("*.log")) for n in (1, 2))
    torn.write_bytes(torn.read_bytes() + b"\x01" * 40)
    content = bytearray(flipped.read_bytes())
    content[content.index(b"a" * 100)] ^= 1
    flipped.write_bytes(content)
    async with serving(path, {"storage.verify_on_start": "full"}) as (server, _):
        return before, await scrape(server)


@moves("retention_deleted_bytes_total")
async def let_records_expire(path: Path) -> tuple[Scrape, Scrape]:
    async with watched(path) as (server, client, clock):
        topic_id = await client.create("orders", 1, retention="1h", segment_age="1m")
        await client.produce(topic_id, [bytes(1_000)])
        before = await scrape(server)
        for _ in range(4):
            clock.move(3_600)
            await client.produce(topic_id, [b"x"])
            await server.clean()
        return before, await scrape(server)


@moves("compaction_runs_total", "compaction_dirty_ratio")
async def compact(path: Path) -> tuple[Scrape, Scrape]:
    async with compacting.Place(path).broker() as (server, client):
        before = await scrape(server)
        await compacting.fill(client, await client.create("orders", 1, **EAGER))
        await server.clean()
        return before, await scrape(server)


@moves("erasures_pending")
async def ask_for_an_erasure(path: Path) -> tuple[Scrape, Scrape]:
    place = erasing.Place(path)
    async with place.broker(held=True) as (server, _, client):
        topic_id = await client.create("orders")
        await erasing.fill(client, topic_id, batches=2)
        before = await scrape(server)
        await erasing.erase(client, keys=[b"alice"], wait=False)
        after = await scrape(server)
        place.heavy.go()
        return before, after


@moves("metadata_errors_total")
async def lose_the_metadata_store(path: Path) -> tuple[Scrape, Scrape]:
    stores: list[LosesReplies] = []
    async with (
        serving(path, change=lambda world: losing(world, stores)) as (server, ready),
        connected(ready) as client,
    ):
        before = await scrape(server)
        stores[0].fail_all = True
        with pytest.raises(MetadataUnavailable, match="T100"):
            await create(client, "more")
        stores[0].fail_all = False
        return before, await scrape(server)


@moves("clock_skew_seconds")
async def step_the_wall_clock(path: Path) -> tuple[Scrape, Scrape]:
    async with watched(path) as (server, _, clock):
        before = await scrape(server)
        clock.step_ms = 30_000
        after = await scrape(server)
        assert after["clock_skew_seconds"].total == 30.0
        return before, after


@moves("connections_refused_total")
async def knock_too_often(path: Path) -> tuple[Scrape, Scrape]:
    async with serving(path, {"limits.connections": 1}) as (server, ready), connected(ready):
        before = await scrape(server)
        stream = await trio.open_tcp_stream(*ready.addresses["client"])
        async with stream:
            while await stream.receive_some():
                pass
        return before, await scrape(server)


@moves("metrics_truncated")
async def have_too_many_topics(path: Path) -> tuple[Scrape, Scrape]:
    async with (
        serving(path, {"metrics.topics_max": 1}) as (server, ready),
        connected(ready) as client,
    ):
        await client.create("orders")
        before = await scrape(server)
        await client.create("bills")
        return before, await scrape(server)


@moves(
    *("group_lag_records", "group_lag_seconds", "group_margin_seconds", "group_verdict"),
    *("group_partition_lag_records", "group_members", "group_commits_total"),
    *("group_rebalances_total", "group_rebalance_duration_seconds"),
)
async def fall_behind(path: Path) -> tuple[Scrape, Scrape]:
    async with watched(path) as (server, client, clock):
        topic_id = await client.create("orders", 1, retention="1h")
        await client.produce(topic_id, [b"a", b"b"])
        await commit(client, "g", committing(topic_id, 0, 2))
        before = await scrape(server)
        await Member(client, "m").join()
        await client.produce(topic_id, [b"c", b"d"])
        for _ in range(200):
            clock.move(1.0)
            await server.look_at_groups()
        await commit(client, "other", committing(topic_id, 0, 1))
        return before, await scrape(server)


@moves("event_loop_lag_seconds", "tasks", "threads_used")
async def live(path: Path) -> tuple[Scrape, Scrape]:
    began, more, ending = trio.Event(), trio.Event(), threading.Event()
    handler = LogHandler(io.StringIO(), broker="n1", render=as_json)
    process = Process(config(path), Sources(), lambda _: began.set(), handler)
    server = process._server
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.main)
        with trio.fail_after(10):
            await began.wait()
        before = await scrape(server)
        seen = server.metrics.event_loop_lag.count
        await until(lambda: server.metrics.event_loop_lag.count > seen)
        for _ in range(20):
            nursery.start_soon(more.wait)
        threads = [threading.Thread(target=ending.wait) for _ in range(20)]
        for thread in threads:
            thread.start()
        after = await scrape(server)
        ending.set()
        for thread in threads:
            thread.join()
        more.set()
        server.stop()  # and with it the process
        nursery.cancel_scope.deadline = trio.current_time() + 10
    return before, after


# ── what is promised ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.use.__name__)
def test_metric_moves_when_it_should(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.broker.registry.RETRY_FIRST_S", 0.0001)
    monkeypatch.setattr("tailrace.broker.process.PULSE_S", 0.005)

    async def main() -> None:
        before, after = await scenario.use(tmp_path)
        assert scenario.moves <= changed(before, after)
        for name, value in STILL.items():
            assert set(after[name].samples.values()) == {value}, name
        for name in scenario.moves:
            promise = BROKERS[name]
            assert {tuple(sorted(one)) for one in after[name].labels} == {
                tuple(sorted(promise.labels))
            }, name

    run(main)


def test_every_metric_is_driven() -> None:
    driven = frozenset[str]().union(*(one.moves for one in SCENARIOS))
    assert not driven & STILL.keys()
    assert driven | STILL.keys() | FOLLOWED == set(BROKERS)


def test_metrics_are_those_that_are_promised(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, _):
            shown = await scrape(server)
            assert {name: one.kind for name, one in shown.items()} == {
                name: one.kind for name, one in BROKERS.items()
            }
            assert {spec.name: spec.labels for spec in TABLE} == {
                name: one.labels for name, one in BROKERS.items()
            }
            short = await scrape(server, detailed=False)
            detailed = {name for name, one in BROKERS.items() if one.detailed}
            assert set(shown) - set(short) == detailed
            assert all(one.doc for one in shown.values())

    run(main)


def test_runs_of_a_compacted_topic_stand_at_0_before_the_first(tmp_path: Path) -> None:
    """Else an alert on their increase has nothing to compare the first failure with."""

    async def main() -> None:
        async with compacting.Place(tmp_path).broker() as (server, client):
            await client.create("kept")
            await client.create("orders", 1, **EAGER)
            await server.clean()
            runs = server.metrics.compaction_runs.values()
            assert runs == [(("orders", "ok"), 0), (("orders", "failed"), 0)]

    run(main)


def test_bounds_are_those_that_are_promised() -> None:
    for spec in TABLE:
        wanted = BATCHES if spec.name == "fsync_batches" else SECONDS
        assert list(spec.bounds) == [float(bound) for bound in wanted.split()]
