"""The store on etcd keeps the contract; answers that are lost, compaction, limits."""

from base64 import b64encode
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

import tailrace.sync
from tailrace.bench.processes import free_ports
from tailrace.broker import metadata_etcd
from tailrace.broker.etcd_gateway import Gateway
from tailrace.broker.metadata import MetadataStore
from tailrace.broker.metadata_etcd import EtcdStore
from tailrace.protocol.errors import MetadataUnavailable
from tests.broker.brokers import Start
from tests.broker.etcding import LONG_S, Between, opened, woken
from tests.broker.metadata_contract import MetadataContract
from tests.etcd_process import Etcd, etcd_cluster


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, etcd_binary: str) -> Iterator[Etcd]:
    """One member, which the tests of this file share, each below a prefix of its own."""
    with etcd_cluster(tmp_path_factory.mktemp("etcd"), binary=etcd_binary) as found:
        yield found


@pytest.mark.slow
class TestEtcdStore(MetadataContract):
    lease_s = 3.0

    @pytest.fixture(autouse=True)
    def _place(self, etcd: Etcd, request: pytest.FixtureRequest) -> None:
        self.urls, self.prefix = etcd.urls, f"/{request.node.name}"

    def open(self) -> AbstractAsyncContextManager[MetadataStore]:
        return opened(self.urls, self.prefix)

    async def pass_seconds(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def outlive(self, store: MetadataStore, lease: int, key: str) -> None:
        with trio.fail_after(60):
            while await store.get(key) is not None:  # noqa: ASYNC110 (it is etcd that acts)
                await trio.sleep(0.1)


def test_keys_stand_below_the_prefix_and_others_are_not_seen(etcd: Etcd) -> None:
    async def main() -> None:
        async with opened(etcd.urls, "/one") as one, opened(etcd.urls, "/one0") as other:
            await one.txn([], {"a/b": b"1"})
            await other.txn([], {"a/b": b"2"})
            [entry] = await one.list("")
            assert (entry.key, entry.value) == ("a/b", b"1")
            found: Any = etcd.ask("kv/range", {"key": "L29uZS9hL2I="})  # /one/a/b
            assert found["kvs"][0]["value"] == "MQ=="

    trio.run(main)


# ── answers that are lost (R16) ──────────────────────────────────────────────────────────────


def test_a_change_whose_answer_was_lost_is_not_sent_again(etcd: Etcd) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            between = Between(etcd.urls[0])
            await nursery.start(between.run)
            async with opened([between.url, *etcd.urls], "/lost") as store:
                first = await store.txn([], {"k": b"0"})
                assert first is not None
                between.losing = True
                with pytest.raises(MetadataUnavailable) as raised:
                    await store.txn([("k", first)], {"k": b"1"})
                assert raised.value.code == "T100"
                assert f"metadata store {between.url} failed: " in str(raised.value)
                assert "whether the change was made is not known" in str(raised.value)
                entry = await store.get("k")
                assert entry is not None
                # Made, once. Sent again it would have found another revision, and been refused.
                assert (entry.value, entry.revision) == (b"1", first + 1)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_what_only_reads_is_asked_of_the_next_member(etcd: Etcd) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            between = Between(etcd.urls[0])
            await nursery.start(between.run)
            async with opened([between.url, *etcd.urls], "/next") as store:
                await store.txn([], {"k": b"0"})
                lease = await store.grant(60)
                between.losing = True
                assert await store.get("k") is not None
                assert between.lost
                assert await store.keepalive(lease)
                connections = between.connections
                assert len(await store.list("")) == 1
                assert between.connections == connections, "the one that failed is not asked first"
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_watch_whose_connection_was_lost_wakes_and_goes_on(etcd: Etcd) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            between = Between(etcd.urls[0])
            await nursery.start(between.run)
            async with opened([between.url], "/watch") as store, opened(etcd.urls, "/watch") as by:
                watch = store.watch("a/")
                between.losing = True
                await by.txn([], {"a/1": b""})  # the event is swallowed
                with trio.move_on_after(0.5):
                    await watch.wait()
                between.losing = False
                await woken(watch.wait)
                await by.txn([], {"a/2": b""})
                await woken(watch.wait)
            nursery.cancel_scope.cancel()

    trio.run(main)


# ── compaction ───────────────────────────────────────────────────────────────────────────────


class Compacting(Gateway):
    """Between the pages of a list everything that is not current is compacted."""

    etcd: Etcd
    times = 0

    async def call(self, path: str, question: Any, kind: Any, *, repeat: bool) -> Any:
        answer = await super().call(path, question, kind, repeat=repeat)
        if path == "kv/range" and self.times:
            self.times -= 1
            self.etcd.ask("kv/put", {"key": "eA==", "value": ""})
            newest: Any = self.etcd.ask("kv/put", {"key": "eA==", "value": ""})
            self.etcd.ask("kv/compaction", {"revision": newest["header"]["revision"]})
        return answer


@pytest.mark.parametrize(("times", "fails"), [(1, False), (3, True)])
def test_a_list_whose_revision_is_compacted_begins_anew(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch, times: int, fails: bool
) -> None:
    monkeypatch.setattr(metadata_etcd, "PAGE_ENTRIES", 2)

    async def main() -> None:
        async with httpx2.AsyncClient(trust_env=False) as client:
            gateway = Compacting(etcd.urls, client, None, call_s=LONG_S)
            gateway.etcd = etcd
            store = EtcdStore(gateway, f"/compacted{times}")
            keys = [f"{number}" for number in range(5)]
            await store.txn([], dict.fromkeys(keys, b""))
            gateway.times = times
            if fails:
                with pytest.raises(MetadataUnavailable, match="compacted, 3 times in one list"):
                    await store.list("")
            else:
                assert [entry.key for entry in await store.list("")] == keys

    trio.run(main)


def test_a_watch_goes_on_after_compaction(etcd: Etcd) -> None:
    async def main() -> None:
        async with opened(etcd.urls, "/compacting") as store:
            watch = store.watch("")
            for _ in range(3):
                revision = await store.txn([], {"k": b""})
                await woken(watch.wait)
                etcd.ask("kv/compaction", {"revision": revision})

    trio.run(main)


# ── a broker on it ───────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_broker_keeps_its_topics_there(etcd: Etcd, start: Start, tmp_path: Path) -> None:
    file = tmp_path / "on-etcd.toml"
    file.write_text(
        '[broker]\nid = "n1"\n[cluster]\nmetadata = "etcd"\nprefix = "/broker"\n'
        f'etcd = ["{etcd.urls[0]}"]\n'
    )
    for create in (True, False):
        broker = start("-c", str(file))
        url = broker.ready()["url"]
        with tailrace.sync.connect(url) as client:
            if create:
                client.admin.create_topic("orders")
            assert [topic.name for topic in client.admin.list_topics()] == ["orders"]
            assert client.admin.describe_cluster().metadata == "etcd"
        assert broker.stop() == 0
    key = b64encode(b"/broker/topics/orders").decode()
    keys: Any = etcd.ask("kv/range", {"key": key})
    assert len(keys["kvs"]) == 1


@pytest.mark.slow
def test_a_broker_whose_etcd_is_away_says_so(start: Start) -> None:
    [port] = free_ports(1)
    where = ("--set", f"cluster.etcd=http://127.0.0.1:{port}", "--set", "broker.id=n1")
    broker = start("--set", "cluster.metadata=etcd", *where)
    said = broker.wait_logged("metadata.unreachable")
    assert said["code"] == "T100"
    assert f"http://127.0.0.1:{port} failed: Connection refused" in said["message"]


# ── limits, and the alarm ────────────────────────────────────────────────────────────────────


def test_a_change_that_is_too_large_is_a_typed_error(etcd: Etcd) -> None:
    async def main() -> None:
        async with opened(etcd.urls, "/large") as store:
            with pytest.raises(MetadataUnavailable, match="request is too large"):
                await store.txn([], {"k": bytes(1_800_000)})
            assert await store.get("k") is None

    trio.run(main)


@pytest.mark.slow
def test_a_full_etcd_is_read_only_until_the_alarm_is_disarmed(
    tmp_path: Path, etcd_binary: str
) -> None:
    async def main(etcd: Etcd) -> None:
        async with opened(etcd.urls) as store:
            lease = await store.grant(600)
            written = 0

            async def fill() -> None:
                nonlocal written
                for _ in range(200):
                    await store.txn([], {f"k{written:03}": bytes(500_000)})
                    written += 1

            with pytest.raises(MetadataUnavailable) as raised:
                await fill()
            assert "is read-only: its database is full (alarm NOSPACE)" in str(raised.value)
            assert "etcdctl alarm disarm" in raised.value.hint
            # The change that finds the room gone as it is applied is made, though it is refused.
            assert written > 0
            assert len(await store.list("")) - written in (0, 1)
            assert await store.keepalive(lease)
            with pytest.raises(MetadataUnavailable, match="read-only"):
                await store.grant(10)
            async with opened(etcd.urls) as other:  # a broker may start
                assert await other.get("k000") is not None
            # Not by the store: some releases of 3.5 refuse a transaction that only deletes.
            gone: Any = etcd.ask("kv/deleterange", {"key": "L3Q=", "range_end": "L3U="})  # /t to /u
            etcd.ask("kv/compaction", {"revision": gone["header"]["revision"], "physical": True})
            etcd.ask("maintenance/defragment", {})
            alarms: Any = etcd.ask("maintenance/alarm", {"action": "GET"})
            for alarm in alarms["alarms"]:
                etcd.ask("maintenance/alarm", {"action": "DEACTIVATE", **alarm})
            assert await store.txn([], {"again": b"1"}, ["k000"]) is not None

    quota = f"--quota-backend-bytes={8 * 1024 * 1024}"
    with etcd_cluster(tmp_path, 1, quota, binary=etcd_binary) as etcd:
        trio.run(main, etcd)
