"""Fetching: bounds, long polls, offsets, damaged segments."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tailrace.protocol.batch import parse_header
from tailrace.protocol.errors import ConnectError, PartitionOffline
from tailrace.protocol.messages import (
    OFFSET_EARLIEST,
    OFFSET_LATEST,
    FetchPartition,
    FetchRequest,
    FetchResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    OffsetFound,
    OffsetQuery,
)
from tailrace.storage.disk import OsDisk, OsFile
from tests.broker.harness import Client, batch, connected, fetch_request, run, serving


def batches(body: memoryview) -> list[int]:
    """Base offsets of the batches in a body, which must be whole."""
    found: list[int] = []
    position = 0
    while position < len(body):
        header = parse_header(body, position)
        found.append(header.base_offset)
        position += header.size_bytes
    assert position == len(body)
    return found


async def filled(client: Client, count: int, size: int = 1_000) -> bytes:
    """A topic with so many batches of one record."""
    topic_id = await client.create("orders")
    for number in range(count):
        await client.produce(topic_id, [bytes([number]) * size])
    return topic_id


def test_an_answer_holds_whole_batches_up_to_the_bytes_asked_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await filled(client, 10)
            size = len(batch(topic_id, [bytes(1_000)]))
            _, body = await client.fetch(topic_id, bytes_max=3 * size + 1)
            assert batches(body) == [0, 1, 2]
            _, body = await client.fetch(topic_id, offset=7)
            assert batches(body) == [7, 8, 9]
            _, body = await client.fetch(topic_id, offset=4, bytes_max=0)
            assert batches(body) == [4]  # the first one comes whole, or nobody ever passed it

    run(main)


def test_only_the_first_batch_of_an_answer_may_be_too_large(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders", partitions=3)
            for partition in (1, 2):
                await client.produce(topic_id, [bytes(5_000)], partition)
            wanted = tuple(FetchPartition(topic_id, n, 0, 100, -1, -1, -1) for n in range(3))
            request = FetchRequest(0, 1, 100, 0, None, -1, wanted)
            answer, body = await client.ask(request, FetchResponse)
            assert [bool(one.length) for one in answer.results] == [False, True, False]
            assert [one.high_watermark for one in answer.results] == [0, 1, 1]
            assert len(batches(body)) == 1

    run(main)


def test_the_broker_bounds_an_answer_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            serving(tmp_path, {"limits.fetch_size": "64KiB"}) as (_, ready),
            connected(ready) as client,
        ):
            topic_id = await filled(client, 10, size=20_000)
            _, body = await client.fetch(topic_id, bytes_max=1 << 30)
            assert batches(body) == [0, 1, 2]

    run(main)


def test_a_large_answer_arrives_whole_by_sendfile(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await filled(client, 12, size=250_000)  # three segments
            offset, seen = 0, list[int]()
            while offset < 12:
                _, body = await client.fetch(topic_id, offset=offset)
                seen += batches(body)
                offset = seen[-1] + 1
            assert seen == list(range(12))

    run(main)


def test_a_long_poll_is_answered_by_the_record_it_waits_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            serving(tmp_path) as (server, ready),
            connected(ready) as reader,
            connected(ready) as writer,
        ):
            topic_id = await writer.create("orders")
            number = await reader.send(fetch_request(topic_id, wait_ms=20_000))
            await reader.metadata()  # the connection serves on meanwhile
            assert any("fetch" in line for line in server.open_requests())
            await writer.produce(topic_id, [b"a"])
            assert batches((await reader.wait(number)).body) == [0]
            assert server.open_requests() == []

    run(main)


def test_a_long_poll_ends_at_its_time_and_waits_for_its_bytes(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            began = trio.current_time()
            _, body = await client.fetch(topic_id, wait_ms=30)
            assert len(body) == 0
            assert trio.current_time() - began >= 0.03
            number = await client.send(fetch_request(topic_id, wait_ms=20_000, bytes_min=2_000))
            for _ in range(3):
                await client.produce(topic_id, [bytes(900)])
            assert batches((await client.wait(number)).body) == [0, 1, 2]

    run(main)


def test_a_fetch_that_wants_more_than_it_may_get_does_not_wait_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await filled(client, 10)
            with trio.fail_after(5):
                _, body = await client.fetch(
                    topic_id, wait_ms=20_000, bytes_min=1 << 20, bytes_max=5_000
                )
            assert batches(body) == [0, 1, 2, 3]

    run(main)


def test_a_poll_of_a_closed_connection_is_forgotten(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            async with connected(ready) as other:
                await other.send(fetch_request(topic_id, wait_ms=20_000))
                await other.metadata()
                assert server.open_requests() != []
            while server.open_requests():
                await trio.lowlevel.checkpoint()
            assert (await client.produce(topic_id, [b"a"])).error is None

    run(main)


def test_offsets_outside_the_log_are_told_with_its_bounds(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await filled(client, 2)
            for offset in (-1, 3):
                answer, _ = await client.fetch(topic_id, offset=offset, wait_ms=20_000)
                error = answer.results[0].error
                assert error is not None
                assert (error.code, error.details["end"]) == (41, 2)
            for where in ((topic_id, 1, 11), (bytes(16), 0, 10)):
                answer, _ = await client.fetch(where[0], partition=where[1])
                error = answer.results[0].error
                assert error is not None
                assert error.code == where[2]

    run(main)


def test_a_reader_with_another_epoch_is_fenced_and_a_stranger_is_no_follower(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            request = fetch_request(topic_id)
            [wanted] = request.partitions
            fenced = replace(request, partitions=(replace(wanted, leader_epoch=7),))
            answer, _ = await client.ask(fenced, FetchResponse)
            assert answer.results[0].error is not None
            assert answer.results[0].error.code == 45
            asked = (replace(wanted, leader_epoch=1, last_fetched_epoch=-1, flushed_end=0),)
            answer, _ = await client.ask(
                replace(request, replica_id="n2", broker_epoch=4, partitions=asked), FetchResponse
            )
            assert answer.results[0].error is not None
            assert answer.results[0].error.code == 45
            with pytest.raises(ConnectError, match="T121"):
                await client.ask(replace(request, partitions=asked), FetchResponse)

    run(main)


def test_a_damaged_segment_is_found_before_it_is_served_and_the_rest_stays(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await filled(client, 12, size=250_000)
        first, *_ = sorted((tmp_path / "data" / "topics").glob("*/*.log"))
        data = bytearray(first.read_bytes())
        data[300_000] ^= 1  # in the second batch of a sealed segment
        first.write_bytes(data)
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            _, body = await client.fetch(topic_id, offset=0)
            assert batches(body) == [0]
            answer, body = await client.fetch(topic_id, offset=1)
            error = answer.results[0].error
            assert error is not None
            assert (error.code, error.details["offset"], len(body)) == (35, 1, 0)
            _, body = await client.fetch(topic_id, offset=2)
            assert batches(body)[0] == 2

    run(main)


class Unreadable(OsDisk):
    """Files of which nothing can be read, from when it is told so."""

    broken = False

    def open(self, path: str, *, create: bool = False) -> OsFile:
        file = super().open(path, create=create)
        read = file.read

        def failing(length: int, position: int) -> bytes:
            if self.broken:
                raise OSError(5, "planted")
            return read(length, position)

        file.read = failing  # type: ignore[method-assign]
        return file


def test_a_segment_that_cannot_be_verified_is_told_and_the_connection_stays(
    tmp_path: Path,
) -> None:
    disk = Unreadable()

    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await filled(client, 12, size=250_000)
        async with (
            serving(tmp_path, change=lambda world: replace(world, disk=disk)) as (_, ready),
            connected(ready) as client,
        ):
            disk.broken = True
            answer, _ = await client.fetch(topic_id, offset=0)
            assert answer.results[0].error is not None
            assert answer.results[0].error.code == 33
            request = ListOffsetsRequest(0, (OffsetQuery(topic_id, 0, 1),))
            with pytest.raises(PartitionOffline, match="planted"):
                await client.ask(request, ListOffsetsResponse)
            disk.broken = False
            _, body = await client.fetch(topic_id, offset=0)
            assert batches(body)[0] == 0

    run(main)


def test_offsets_are_found_by_append_time(tmp_path: Path) -> None:
    async def find(client: Client, topic_id: bytes, time: int, partition: int = 0) -> OffsetFound:
        request = ListOffsetsRequest(0, (OffsetQuery(topic_id, partition, time),))
        return (await client.ask(request, ListOffsetsResponse))[0].results[0]

    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            times = [
                (await client.produce(topic_id, [bytes(100_000)])).append_time for _ in range(25)
            ]
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            for time in (times[0], times[12], times[24]):
                found = await find(client, topic_id, time)
                assert (found.offset, found.append_time) == (times.index(time), time)
            after = await find(client, topic_id, times[24] + 1)
            assert (after.offset, after.append_time) == (25, -1)
            assert (await find(client, topic_id, OFFSET_EARLIEST)).offset == 0
            assert (await find(client, topic_id, OFFSET_LATEST)).offset == 25
            missing = await find(client, topic_id, 0, partition=3)
            assert missing.error is not None
            assert missing.error.code == 11

    run(main)
