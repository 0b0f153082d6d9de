"""Compaction where a partition has several replicas: tombstones wait for all of them (S27, R39)."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tailrace.broker.cleaner import Cleaner
from tailrace.broker.partition import Partition
from tailrace.broker.replica import Follower
from tailrace.broker.server import Server
from tailrace.protocol.batch import decode_columns, encode_batch, header_seed, parse_header
from tailrace.protocol.messages import ProduceResponse
from tests.broker.compacting import EAGER, Found, Place, fill, read
from tests.broker.harness import Client, produce_request, run

TOMBSTONES_GO_AT_ONCE = {**EAGER, "tombstone_retention": "1ms"}


class Scene:
    """A broker that leads a compacted partition, of which n2 has a replica, too."""

    def __init__(self, server: Server, client: Client, topic_id: bytes) -> None:
        node = server._node  # pyright: ignore[reportPrivateUsage]
        assert node is not None
        partition = node.shelf.get(topic_id, 0)
        assert partition is not None
        self.cleaner: Cleaner = node.cleaner
        self.partition: Partition = partition
        self.n2 = Follower()
        self._server = server
        self._client = client
        self._topic_id = topic_id

    def has_replica(self) -> None:
        self.partition.replica.followers["n2"] = self.n2

    async def clean(self) -> Found:
        """Clean all that is due; what there is then."""
        for _ in range(3):  # the first gives tombstones their time, which has passed by the next
            await self._server.clean()
        return await read(self._client, self._topic_id)

    async def clean_as_follower(self) -> bool:
        """Clean all that is due; whether a tombstone is left."""
        await self._server.clean()
        log = self.partition.log
        offset, values = log.start, list[bytes | None]()
        while offset < log.end:
            piece = log.read(offset, 65_536, log.end)
            data, position = b"".join(bytes(one.view()) for one in piece.ranges), 0
            while position < len(data):
                header = parse_header(data, position)
                values += decode_columns(data[position:], header).values
                position += header.size_bytes
            offset = piece.next_offset
        return None in values

    async def delete(self, key: bytes) -> None:
        """Write a tombstone, and something behind it."""
        entry = encode_batch(
            header_seed(self._topic_id, 0), keys=[key], values=[None], timestamps=1
        )
        request = produce_request(self._topic_id, [entry])
        answer, _ = await self._client.ask(request, ProduceResponse, entry)
        assert answer.results[0].error is None
        await fill(self._client, self._topic_id, batches=6, key_of=lambda n: 100 + n)


@asynccontextmanager
async def scene(tmp_path: Path) -> AsyncGenerator[Scene]:
    async with Place(tmp_path).broker() as (server, client):
        topic_id = await client.create("orders", 1, **TOMBSTONES_GO_AT_ONCE)
        await fill(client, topic_id, batches=6)
        found = Scene(server, client, topic_id)
        await found.delete(b"k1")
        yield found


def has_tombstone(found: Found) -> bool:
    return any(value is None for _, value in found.values())


def test_a_tombstone_stays_while_a_replica_has_not_told_how_far_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as at:
            at.has_replica()
            assert has_tombstone(await at.clean())
            at.n2.cleaned = 3  # it may still have what the tombstone deletes
            assert has_tombstone(await at.clean())
            at.n2.cleaned = at.partition.log.end
            found = await at.clean()
            assert not has_tombstone(found)
            assert not any(key == b"k1" for key, _ in found.values())

    run(main)


def test_a_partition_with_one_replica_waits_for_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as at:
            assert not has_tombstone(await at.clean())

    run(main)


def test_the_leader_tells_the_least_of_all_replicas(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as at:
            at.has_replica()
            await at.clean()
            mine = at.cleaner.clean_offset(at.partition)
            assert mine > 6
            assert at.cleaner.cleaned_min(at.partition) == -1
            at.n2.cleaned = 5
            assert at.cleaner.cleaned_min(at.partition) == 5
            at.n2.cleaned = mine + 100
            assert at.cleaner.cleaned_min(at.partition) == mine

    run(main)


def test_a_follower_goes_by_what_the_leader_of_its_epoch_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as at:
            at.has_replica()
            await at.clean()
            leadership = at.partition.leadership
            epoch, end = leadership.leader_epoch + 1, at.partition.log.end
            at.partition.follow(replace(leadership, leader="n2", leader_epoch=epoch))
            at.cleaner.told(at.partition, epoch - 1, end)
            assert await at.clean_as_follower()
            at.cleaner.told(at.partition, epoch, 3)
            assert await at.clean_as_follower()
            at.cleaner.told(at.partition, epoch, end)
            assert not await at.clean_as_follower()

    run(main)


def test_a_topic_that_is_not_compacted_has_nothing_to_tell(tmp_path: Path) -> None:
    async def main() -> None:
        async with Place(tmp_path).broker() as (server, client):
            topic_id = await client.create("orders", 1)
            at = Scene(server, client, topic_id)
            await server.clean()
            assert at.cleaner.clean_offset(at.partition) == -1
            assert at.cleaner.cleaned_min(at.partition) == -1

    run(main)
