"""The store on etcd while members of it die, hang or are cut off from each other."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tailrace.broker.metadata_etcd import EtcdStore
from tailrace.protocol.errors import MetadataUnavailable
from tests.broker.etcding import opened, woken
from tests.etcd_process import Etcd, etcd_cluster

pytestmark = pytest.mark.slow


@pytest.fixture
def three(tmp_path: Path, etcd_binary: str) -> Iterator[Etcd]:
    with etcd_cluster(tmp_path, 3, binary=etcd_binary) as found:
        yield found


async def settled(store: EtcdStore, key: str, value: bytes) -> int:
    """Write until it is done, as whoever uses the store does: read again before trying again."""
    with trio.fail_after(60):
        while True:
            try:
                found = await store.get(key)
                if found is not None and found.value == value:
                    return found.revision
                expected = 0 if found is None else found.revision
                await store.txn([(key, expected)], {key: value})
            except MetadataUnavailable:
                await trio.sleep(0.05)


def test_another_member_leads_after_the_leader_died(three: Etcd) -> None:
    async def main() -> None:
        leader = three.leader()
        urls = [three.urls[leader], *(url for url in three.urls if url != three.urls[leader])]
        async with opened(urls, call_s=5) as store:
            watch = store.watch("a/")
            lease = await store.grant(600)
            first = await settled(store, "a/1", b"before")
            await store.txn([], {"mine": b""}, lease=lease)
            await woken(watch.wait)
            three.members[leader].kill()
            assert await settled(store, "a/1", b"after") > first
            await woken(watch.wait)
            assert [one.value for one in await store.list("a/")] == [b"after"]
            assert await store.keepalive(lease)
            three.members[leader].start()
            await settled(store, "a/2", b"again")
            await woken(watch.wait)

    trio.run(main)


def test_a_member_that_hangs_is_left(three: Etcd) -> None:
    async def main() -> None:
        async with opened(three.urls, call_s=6) as store:
            await settled(store, "a/1", b"before")
            watch = store.watch("a/")
            three.members[0].pause()
            assert await store.get("a/1") is not None
            for number in range(3):
                await settled(store, "a/1", b"%d" % number)
                await woken(watch.wait)
            three.members[0].resume()
            await settled(store, "a/2", b"")

    trio.run(main)


def test_without_a_majority_nothing_is_read_or_written(three: Etcd) -> None:
    async def main() -> None:
        async with opened(three.urls, call_s=2) as store:
            revision = await settled(store, "a/1", b"before")
            watch = store.watch("a/")
            for member in three.members[1:]:
                member.pause()
            for _ in range(2):
                with pytest.raises(MetadataUnavailable, match=r"metadata store http://127.+failed"):
                    await store.get("a/1")
                with pytest.raises(MetadataUnavailable):
                    await store.txn([("a/1", revision)], {"a/1": b"maybe"})
            for member in three.members[1:]:
                member.resume()
            await settled(store, "a/1", b"after")
            await woken(watch.wait)

    trio.run(main)


def test_one_member_that_dies_and_comes_back(tmp_path: Path, etcd_binary: str) -> None:
    async def main(etcd: Etcd) -> None:
        [member] = etcd.members
        async with opened(etcd.urls, call_s=5) as store:
            first = await settled(store, "a/1", b"before")
            watch = store.watch("a/")
            member.kill()
            with pytest.raises(MetadataUnavailable) as raised:
                await store.get("a/1")
            assert f"metadata store {member.url} failed: Connection refused." in str(raised.value)
            with pytest.raises(MetadataUnavailable) as raised:
                await store.txn([], {"a/1": b""})
            assert "not known" not in str(raised.value), "nobody was reached"
            member.start()
            for number in itertools.count():
                assert number < 600, etcd.logs()
                try:
                    entry = await store.get("a/1")
                    break
                except MetadataUnavailable:
                    await trio.sleep(0.1)
            assert entry is not None
            assert entry.revision == first
            await woken(watch.wait)
            await settled(store, "a/1", b"after")
            await woken(watch.wait)

    with etcd_cluster(tmp_path, binary=etcd_binary) as etcd:
        trio.run(main, etcd)


def test_nobody_there_at_the_start_is_a_typed_error(tmp_path: Path, etcd_binary: str) -> None:
    async def main(etcd: Etcd) -> None:
        etcd.members[0].kill()
        with pytest.raises(MetadataUnavailable, match="Connection refused"):
            async with opened(etcd.urls):
                pass

    with etcd_cluster(tmp_path, binary=etcd_binary) as etcd:
        trio.run(main, etcd)


def test_members_of_two_clusters_in_one_list_are_found_out(
    tmp_path: Path, etcd_binary: str
) -> None:
    async def main(urls: list[str], first: Etcd) -> None:
        async with opened(urls) as store:
            await store.txn([], {"k": b""})
            first.members[0].kill()
            with pytest.raises(MetadataUnavailable, match="belongs to another etcd cluster"):
                await store.get("k")

    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one_etcd, another = (etcd_cluster(folder, binary=etcd_binary) for folder in folders)
    with one_etcd as one, another as two:
        trio.run(main, [*one.urls, *two.urls], one)
