"""Log starts on a real broker: what is out of reach at once, and what leaves the files soon."""

import errno
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tailrace.protocol.errors import (
    BrokerError,
    ConnectError,
    OffsetOutOfRange,
    PartitionNotFound,
)
from tailrace.protocol.messages import DeleteRecordsRequest, DeleteRecordsResponse, StartOffset
from tailrace.storage.disk import File, OsDisk
from tests.broker.erasing import END, SECRET, Place, delete_records, fill, read, send, until
from tests.broker.harness import connected, run


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_deleted_records_are_gone_for_readers_at_once_and_from_the_files_soon(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (_, _, client):
            topic_id = await client.create("orders", 2)
            await fill(client, topic_id)
            before = await read(client, topic_id)
            assert await delete_records(client, {0: 50, 1: END}) == {0: 50, 1: 0}
            assert await read(client, topic_id, offset=50) == before[50:]
            error = (await client.fetch(topic_id, 49))[0].results[0].error
            assert error is not None
            assert error.code == 41
            await until(lambda: not place.holding(SECRET + b" 45"))
            await until(lambda: not place.holding(SECRET + b" 0"))
            assert await read(client, topic_id, offset=50) == before[50:]
            assert await delete_records(client, {0: 20}) == {0: 50}
            assert await delete_records(client, {0: END}) == {0: 132}
            await until(lambda: not place.holding(SECRET))
            assert await send(client, topic_id, [(b"alice", b"new")]) == 132
            assert await read(client, topic_id, offset=132) == [(132, b"alice", b"new")]

    run(main)


def test_a_start_inside_a_segment_is_seen_to_after_a_restart(place: Place) -> None:
    async def main() -> None:
        async with place.broker(held=True) as (server, _, client):
            topic_id = await client.create("orders")
            await fill(client, topic_id, batches=2)
            await delete_records(client, {0: 12})
            server.kill()
        assert place.holding(SECRET + b" 5") != []
        async with place.broker() as (_, _, client):
            await until(lambda: not place.holding(SECRET + b" 5"))
            await until(lambda: not place.holding(SECRET + b" 10"))
            assert [one[0] for one in await read(client, topic_id, offset=12)] == list(
                range(12, 22)
            )

    run(main)


def test_a_start_behind_the_end_changes_nothing_anywhere(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (_, ready, client):
            topic_id = await client.create("orders", 2)
            await fill(client, topic_id)
            with pytest.raises(OffsetOutOfRange, match=r"T041.*orders\[0\] ends at 132"):
                await delete_records(client, {1: END, 0: 133})
            with pytest.raises(PartitionNotFound, match="T011"):
                await delete_records(client, {0: 50, 2: 0})
            assert len(await read(client, topic_id)) == 132
            twice = (StartOffset(0, 5), StartOffset(0, 6))
            async with connected(ready) as other:
                with pytest.raises(ConnectError, match="T121"):
                    await other.ask(DeleteRecordsRequest("orders", twice), DeleteRecordsResponse)

    run(main)


def test_records_of_a_topic_that_is_never_synced_can_be_deleted(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (_, _, client):
            topic_id = await client.create("orders", durability="os")
            await fill(client, topic_id)
            assert await delete_records(client, {0: END}) == {0: 132}
            await until(lambda: not place.holding(SECRET))

    run(main)


def test_a_sync_that_fails_while_the_start_moves_ends_the_broker(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(self: OsDisk, files: Sequence[File]) -> None:
        if any(file.path.endswith("/start.tmp") for file in files):
            raise OSError(errno.EIO, "Input/output error")

    async def meet() -> None:
        async with place.broker() as (_, _, client):
            await send(client, await client.create("orders"), [(b"k", b"v")])
            monkeypatch.setattr(OsDisk, "sync", sync)
            with suppress(BrokerError, trio.EndOfChannel):  # the answer may come too late
                await delete_records(client, {0: END})
            await trio.sleep_forever()

    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as raised:
            await meet()
        assert raised.group_contains(BrokerError, match="T093")
        assert (place.path / "data" / "suspect").exists()

    run(main)
