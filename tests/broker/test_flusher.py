"""Group commit: one round for all who wait, lazy rounds, zeros ahead while the disk is idle."""

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest
import trio
import trio.testing

from tailrace.broker import flusher
from tailrace.broker.flusher import Flusher
from tailrace.broker.partition import Partition
from tailrace.broker.world import Offload, World
from tailrace.protocol.messages import (
    DeleteTopicRequest,
    DeleteTopicResponse,
    ProduceResponse,
)
from tailrace.storage.disk import File, OsDisk
from tailrace.storage.marks import read_mark
from tailrace.storage.os_sync import NotBegun
from tests.broker.cluster_harness import Cluster, clustered
from tests.broker.harness import batch, connected, produce_request, run, serving

P = ParamSpec("P")
T = TypeVar("T")


class Gate:
    """An offload whose sync thread waits until it is let go."""

    def __init__(self, inner: Offload) -> None:
        self._inner = inner
        self.open = trio.Event()
        self.rounds = 0

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._inner.run(work, *args, **kwargs)

    def dedicated(self, name: str) -> Offload:
        return GatedThread(self, self._inner.dedicated(name)) if name == "sync" else self._inner


class GatedThread:
    def __init__(self, gate: Gate, inner: Offload) -> None:
        self._gate = gate
        self._inner = inner

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with trio.CancelScope(shield=True):
            await self._gate.open.wait()
        self._gate.rounds += 1
        return await self._inner.run(work, *args, **kwargs)

    def dedicated(self, name: str) -> Offload:
        return self._inner.dedicated(name)


def gated() -> tuple[list[Gate], Callable[[World], World]]:
    """The gate of a broker once it is there, and what puts it in."""
    gates: list[Gate] = []

    def change(world: World) -> World:
        gates.append(Gate(world.offload))
        return replace(world, offload=gates[0])

    return gates, change


def test_whoever_comes_during_a_round_shares_the_next(tmp_path: Path) -> None:
    gates, change = gated()

    async def main() -> None:
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            [gate] = gates
            topic_id = await client.create("orders", partitions=3)
            waiting: list[int] = []
            for number in range(9):
                entry = batch(topic_id, [b"a"], number % 3)
                request = produce_request(topic_id, [entry], number % 3)
                waiting.append(await client.send(request, entry))
            await client.metadata()  # answered, so everything before it was taken up
            assert client.answers == {}  # nothing is acknowledged before its sync
            gate.open.set()
            for number in waiting:
                await client.wait(number)
            assert gate.rounds <= 3

    run(main)


def test_work_that_can_wait_lets_a_round_go_first_but_not_for_long(tmp_path: Path) -> None:
    gates, change = gated()

    async def main() -> None:
        async with serving(tmp_path, change=change) as (server, ready), connected(ready) as client:
            assert server.gateway is not None
            give_way, [gate] = server.gateway.node.flusher.give_way, gates
            before = gate.rounds
            await give_way()
            assert gate.rounds == before, "nobody waits for the disk: nor does this"
            topic_id = await client.create("orders", partitions=1)
            entry = batch(topic_id, [b"a"], 0)
            number = await client.send(produce_request(topic_id, [entry], 0), entry)
            await client.metadata()
            await give_way()
            assert client.answers == {}, "its time was over, and the round was not"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(give_way)
                gate.open.set()
            assert gate.rounds > before, "the round was over before its time was"
            await client.wait(number)

    run(main)


def test_what_comes_during_a_round_is_written_at_its_end_in_one_append(tmp_path: Path) -> None:
    gates, change = gated()

    async def main() -> None:
        async with serving(tmp_path, change=change) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            waiting: list[int] = []
            for _ in range(5):
                entry = batch(topic_id, [b"a"], 0)
                waiting.append(await client.send(produce_request(topic_id, [entry], 0), entry))
                await client.metadata()  # answered, so what came before it was taken up
            assert server.metrics.append_duration.count == 1  # the others wait for the round
            gates[0].open.set()
            for number in waiting:
                await client.wait(number)
            assert server.metrics.append_duration.count == 2
            assert gates[0].rounds == 2

    run(main)


def test_who_waits_too_long_for_a_sync_is_told_that_nothing_was_written(tmp_path: Path) -> None:
    gates, change = gated()

    async def main() -> None:
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            entry = batch(topic_id, [b"a"], 0)
            first = await client.send(produce_request(topic_id, [entry], 0), entry)
            await client.metadata()  # answered, so its sync is under way
            weak = replace(produce_request(topic_id, [entry], 0, acks=1), timeout_ms=100)
            second = await client.send(weak, entry)
            try:
                hasty = replace(produce_request(topic_id, [entry], 0), timeout_ms=100)
                with trio.fail_after(5):
                    answer = await client.wait(await client.send(hasty, entry))
            finally:
                gates[0].open.set()
            assert isinstance(answer.message, ProduceResponse)
            error = answer.message.results[0].error
            assert error is not None
            assert error.code == 34
            assert error.details["maybe_written"] is False
            for number in (first, second):
                await client.wait(number)
            assert (await client.produce(topic_id, [b"b"])).base_offset == 2

    run(main)


class NoDescriptors(OsDisk):
    """Directories cannot be opened for their sync so many times."""

    times = 0

    def sync_together(self, files: Sequence[File], directories: Sequence[str]) -> None:
        if directories and not files and self.times:
            self.times -= 1
            raise NotBegun(errno.EMFILE, "Too many open files")
        super().sync_together(files, directories)


def test_a_round_that_lacks_a_descriptor_goes_on_when_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flusher, "AGAIN_S", 0.0001)
    disk = NoDescriptors()

    async def main() -> None:
        async with (
            serving(tmp_path, change=lambda world: replace(world, disk=disk)) as (server, ready),
            connected(ready) as client,
        ):
            topic_id = await client.create("orders", segment_size="64KiB")
            disk.times = 3
            for _ in range(3):
                assert (await client.produce(topic_id, [os.urandom(40_000)])).error is None
            assert disk.times == 0
            assert server.metrics.fsync_duration.count >= 3

    run(main)


def test_a_round_goes_on_when_whoever_asked_for_it_is_gone(tmp_path: Path) -> None:
    disk = NoDescriptors()

    async def main() -> None:
        async with (
            serving(tmp_path, change=lambda world: replace(world, disk=disk)) as (server, ready),
            connected(ready) as client,
        ):
            assert server.gateway is not None
            node = server.gateway.node
            topic_id = await client.create("orders", durability="os", segment_size="64KiB")
            for _ in range(2):  # a segment with a new name
                await client.produce(topic_id, [os.urandom(40_000)])
            partition, disk.times = node.shelf.find(topic_id, 0), 2
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.flusher.flush, [partition])
                await trio.testing.wait_all_tasks_blocked(0.01)
                entry = batch(topic_id, [b"a"], 0)
                number = await client.send(produce_request(topic_id, [entry], 0), entry)
                await client.metadata()
                assert partition.log.end == 2, "it waits for the round"
                nursery.cancel_scope.cancel()
            with trio.fail_after(5):
                await client.wait(number)

    run(main)


def test_a_topic_may_be_deleted_while_its_sync_waits_for_another_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates, change = gated()
    written: list[tuple[Flusher, Partition]] = []
    unchanged = Flusher.written

    def note(flusher: Flusher, partition: Partition) -> None:
        written.append((flusher, partition))
        unchanged(flusher, partition)

    monkeypatch.setattr(Flusher, "written", note)

    async def main() -> None:
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            [gate] = gates
            gate.open.set()
            other, topic_id = await client.create("other"), await client.create("orders")
            assert (await client.produce(other, [b"a"])).error is None
            gate.open = trio.Event()
            async with trio.open_nursery() as nursery:
                for one, partition in written[:1]:
                    nursery.start_soon(one.flush, [partition])  # as the cleaner does
                entry = batch(topic_id, [b"a"], 0)
                await client.send(produce_request(topic_id, [entry], 0), entry)
                await client.metadata()  # the round of "orders" waits for that of "other"
                await client.ask(DeleteTopicRequest("orders"), DeleteTopicResponse)
                gate.open.set()
            assert (await client.produce(other, [b"b"])).error is None

    run(main)


def test_topics_that_are_never_synced_are_acknowledged_all_the_same(tmp_path: Path) -> None:
    gates, change = gated()

    async def main() -> None:
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders", durability="os")
            assert (await client.produce(topic_id, [b"a"])).error is None
            assert (await client.fetch(topic_id))[0].results[0].high_watermark == 1
            gates[0].open.set()  # the stop syncs it

    run(main)


def test_what_nobody_waits_for_is_synced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flusher, "LAZY_EVERY_S", 0.01)

    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders", durability="os")
            assert (await client.produce(topic_id, [b"a"])).error is None
            [path] = (tmp_path / "data" / "topics").glob("*")
            with trio.fail_after(10):
                while (mark := read_mark(OsDisk(), str(path))) is None or mark.offset < 1:
                    await client.metadata()
            server.kill()
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            assert (await client.fetch(topic_id))[0].results[0].high_watermark == 1

    run(main)


def test_zeros_are_written_ahead_of_a_log_in_use_while_the_disk_is_idle(tmp_path: Path) -> None:
    async def main() -> None:
        settings: dict[str, str | int | float | bool] = {"topic.segment_size": "8MiB"}
        async with serving(tmp_path, settings) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            [log] = (tmp_path / "data" / "topics").glob("*/*.log")
            await client.produce(topic_id, [b"a"])
            assert log.stat().st_blocks * 512 < 65_536
            for _ in range(4):
                await client.produce(topic_id, [bytes(20_000)])
            with trio.fail_after(10):
                while log.stat().st_blocks * 512 < 2 * 80_000:
                    await client.metadata()  # somebody else, who does not need the disk
            assert (await client.produce(topic_id, [b"b"])).base_offset == 5
        async with serving(tmp_path, settings) as (_, ready), connected(ready) as client:
            assert (await client.fetch(topic_id))[0].results[0].high_watermark == 6

    run(main)


def test_what_is_acknowledged_by_replicas_is_synced_within_the_interval() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", durability="replicated")
        await cluster.until(lambda: all(cluster.held(one, "orders") for one in cluster.running))
        logs = [cluster.partition(broker, "orders").log for broker in ("n1", "n2", "n3")]
        await cluster.send("orders", b"a")
        assert {log.flushed for log in logs} == {0}
        await trio.sleep(1.2)
        assert {log.flushed for log in logs} == {1}

    clustered(main, settings={"storage.sync_interval": "500ms"})


def test_copies_that_catch_up_are_synced_beside_a_round(tmp_path: Path) -> None:
    gates, change = gated()

    async def main() -> None:
        async with serving(tmp_path, change=change) as (server, ready), connected(ready) as client:
            assert server.gateway is not None
            node, [gate] = server.gateway.node, gates
            topic_id = await client.create("orders", partitions=2)
            waiting: list[int] = []
            for number in range(2):
                entry = batch(topic_id, [b"a"], number)
                request = produce_request(topic_id, [entry], number)
                waiting.append(await client.send(request, entry))
                await client.metadata()
            other, apart = (node.shelf.find(topic_id, number) for number in range(2))
            try:
                assert node.flusher.syncing(other)
                with trio.fail_after(5):
                    await node.flusher.flushed_apart({apart: apart.log.end})
                assert apart.log.flushed == apart.log.end == 1
                assert node.flusher.syncing(other), "the round goes on"
            finally:
                gate.open.set()
            for number in waiting:
                await client.wait(number)

    run(main)
