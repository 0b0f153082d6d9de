"""Producing: acks, order, duplicates, what is refused and what happens on a full disk."""

import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tailrace.broker.world import World
from tailrace.protocol.errors import ConnectError
from tailrace.protocol.messages import (
    ProducePartition,
    ProduceRequest,
    ProduceResponse,
    ProduceResult,
)
from tailrace.storage.disk import OsDisk, OsFile
from tests.broker.harness import Client, batch, connected, produce_request, run, serving


async def send(client: Client, topic_id: bytes, entries: Sequence[bytes]) -> list[ProduceResult]:
    request = produce_request(topic_id, entries)
    answer, _ = await client.ask(request, ProduceResponse, b"".join(entries))
    return list(answer.results)


def test_pipelined_batches_are_written_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            numbers: list[int] = []
            data = b""
            for number in range(60):  # more than may be in flight: the rest waits unread
                entry = batch(topic_id, [bytes([number])])
                correlation, head = client.protocol.request(
                    produce_request(topic_id, [entry]), len(entry)
                )
                data += head + entry
                numbers.append(correlation)
            await client.stream.send_all(data)
            offsets: list[int] = []
            for correlation in numbers:
                answer = (await client.wait(correlation)).message
                assert isinstance(answer, ProduceResponse)
                offsets.append(answer.results[0].base_offset)
            assert offsets == list(range(60))

    run(main)


def test_one_request_may_name_a_partition_more_than_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders", partitions=2)
            parts = [(0, b"a"), (1, b"b"), (0, b"c")]
            entries = [batch(topic_id, [value], partition) for partition, value in parts]
            request = ProduceRequest(
                -1,
                30_000,
                tuple(
                    ProducePartition(topic_id, partition, len(entry))
                    for (partition, _), entry in zip(parts, entries, strict=True)
                ),
            )
            answer, _ = await client.ask(request, ProduceResponse, b"".join(entries))
            assert [one.base_offset for one in answer.results] == [0, 0, 1]

    run(main)


def test_acks_zero_is_never_answered_but_written(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            entry = batch(topic_id, [b"a"])
            await client.send(produce_request(topic_id, [entry], acks=0), entry)
            assert (await client.produce(topic_id, [b"b"], acks=1)).base_offset == 1
            assert client.answers == {}
            weak = server.metrics.weak_acks
            assert (weak.of("orders", "0").value, weak.of("orders", "1").value) == (1, 1)
            assert server.open_requests() == []

    run(main)


def test_what_acks_zero_does_not_hear_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            entry = batch(topic_id, [b"a"])
            await client.send(produce_request(topic_id, [entry], partition=5, acks=0), entry)
            await client.metadata()

    run(main)
    assert "T011" in caplog.text


def test_a_resent_batch_gets_its_first_offset_again_also_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            sent = [
                batch(topic_id, [b"a"], producer_id=5, producer_epoch=0, base_sequence=number)
                for number in range(3)
            ]
            results = await send(client, topic_id, [*sent, sent[1]])
            assert [one.base_offset for one in results] == [0, 1, 2, 1]
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            assert [one.base_offset for one in await send(client, topic_id, sent)] == [0, 1, 2]
            answer, _ = await client.fetch(topic_id)
            assert answer.results[0].high_watermark == 3

    run(main)


def test_refusals_name_the_reason_and_leave_the_others_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders", max_record="4KiB")
            good = batch(topic_id, [b"a"])
            damaged = bytearray(good)
            damaged[-1] ^= 1
            misdirected = batch(topic_id, [b"a"], partition=1)
            future = batch(topic_id, [b"a"], timestamp=1 << 50)
            gap = batch(topic_id, [b"a"], producer_id=1, producer_epoch=0, base_sequence=9)
            entries = [bytes(damaged), misdirected, future, good[:-1], gap, good]
            results = await send(client, topic_id, entries)
            codes = [one.error.code if one.error else 0 for one in results]
            assert codes[:4] == [28, 28, 22, 28]
            assert codes[4] in (38, 39)
            assert (codes[5], results[5].base_offset) == (0, 0)

    run(main)


def test_nonsense_in_a_request_ends_the_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready):
            async with connected(ready) as client:
                topic_id = await client.create("orders")
                entry = batch(topic_id, [b"a"])
                with pytest.raises(ConnectError, match="acks 2"):
                    await client.ask(
                        produce_request(topic_id, [entry], acks=2), ProduceResponse, entry
                    )
            async with connected(ready) as client:
                request = ProduceRequest(-1, 1_000, ())
                answer, _ = await client.ask(request, ProduceResponse)
                assert answer.results == ()

    run(main)


class FullDisk(OsDisk):
    full = False
    free_bytes = 1 << 40

    def open(self, path: str, *, create: bool = False) -> OsFile:
        file = super().open(path, create=create)
        write = file.write

        def failing(buffers: Sequence[bytes | bytearray | memoryview], position: int) -> None:
            if self.full and path.endswith(".log"):
                raise OSError(errno.ENOSPC, "planted")
            write(buffers, position)

        file.write = failing  # type: ignore[method-assign]
        return file

    def usage(self, path: str) -> tuple[int, int]:
        return self.free_bytes, 1 << 41


def test_a_full_disk_refuses_writes_and_the_broker_lives(tmp_path: Path) -> None:
    disk = FullDisk()

    def change(world: World) -> World:
        return replace(world, disk=disk)

    async def main() -> None:
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            assert (await client.produce(topic_id, [b"a"])).base_offset == 0
            disk.full = True
            refused = await client.produce(topic_id, [b"b"])
            assert refused.error is not None
            assert refused.error.code == 31
            answer, _ = await client.fetch(topic_id)
            assert answer.results[0].log_end == 1
            disk.full = False
            assert (await client.produce(topic_id, [b"c"])).base_offset == 1

    run(main)


def test_below_the_reserve_writes_are_refused_until_there_is_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.broker.roomkeeper.LOOK_EVERY_S", 0.001)
    disk = FullDisk()
    percent = (1 << 41) // 100

    async def settle(client: Client, topic_id: bytes, code: int) -> ProduceResult:
        """Produce until the outcome is that one."""
        with trio.fail_after(5):
            while True:
                result = await client.produce(topic_id, [b"x"])
                if (result.error.code if result.error else 0) == code:
                    return result

    async def main() -> None:
        settings: dict[str, str | int | float | bool] = {"storage.min_free": "5%"}
        async with (
            serving(tmp_path, settings, lambda world: replace(world, disk=disk)) as (server, ready),
            connected(ready) as client,
        ):
            topic_id = await client.create("orders")
            await settle(client, topic_id, 0)
            disk.free_bytes = 5 * percent - 1
            refused = await settle(client, topic_id, 31)
            assert refused.error is not None
            assert "min_free 5%" in refused.error.message
            assert (server.state, server.health.status) == ("read_only", "degraded")
            assert (await client.fetch(topic_id))[0].results[0].error is None
            disk.free_bytes = int(5.5 * percent)
            for _ in range(20):
                assert (await client.produce(topic_id, [b"x"])).error is not None
            disk.free_bytes = int(6.1 * percent)
            await settle(client, topic_id, 0)
            assert (server.state, server.health.status) == ("running", "ok")

    run(main)
