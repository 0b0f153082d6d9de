"""The broker that tests run: real, in a thread, gone when it is stopped."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio
import pytest

import tailrace
import tailrace.sync
from tailrace.protocol.errors import TailraceError, TopicExists
from tailrace.testing import Broker


def test_records_go_in_and_come_out() -> None:
    with Broker() as broker:
        made = broker.seed("orders", [b"a", b"b", None], keys=[b"1", b"2", b"1"], partitions=4)
        assert len(made) == 3
        records = broker.records("orders")
        assert sorted(r.value or b"" for r in records) == [b"", b"a", b"b"]
        [only] = broker.records("orders", partition=made[1].partition)[-1:]
        assert only.offset == made[1].offset or made[1].partition == made[0].partition
        assert broker.wait_values("orders", count=3)


def test_values_have_codecs() -> None:
    with Broker() as broker:
        broker.seed("words", ["über", "unter"], value=str)
        assert broker.wait_values("words", count=2, value=str) == ["über", "unter"]
        assert broker.records("words", value=str)[0].value == "über"


def test_waiting_in_vain_says_what_is_there() -> None:
    with Broker() as broker:
        broker.seed("orders", [b"a"])
        with pytest.raises(AssertionError, match=r"1 of 2 records in 'orders'") as failure:
            broker.wait_values("orders", count=2, timeout=0.05)
        assert "orders[0]: log_start 0, log_end 1" in str(failure.value)
        assert "broker.ready" in str(failure.value)
        with pytest.raises(AssertionError, match="T010"):
            broker.wait_values("nothing", count=1, timeout=0.05)
        with (
            broker.faults.refuse_connections(),
            broker.faults.drop_connections("fetch"),
            pytest.raises(AssertionError, match="0 of 1 records"),
        ):
            broker.wait_values("orders", count=1, timeout=0.1)


def test_topics_take_configuration() -> None:
    with Broker(config={"topic.partitions": 3}) as broker:
        broker.create_topic("a", retention="1h")
        with pytest.raises(TopicExists):
            broker.create_topic("a")
        broker.create_topic("b", 2)
        detail = broker.client().admin.describe_topic("b")
        assert detail.partitions == 2
        assert broker.name("orders") != broker.name("orders")


def test_a_bad_configuration_is_refused() -> None:
    with pytest.raises(TailraceError, match="T080"):
        Broker(config={"topic.partition": 3})


def test_a_graceful_restart_keeps_records_port_and_clients() -> None:
    with Broker() as broker:
        client = broker.client()
        broker.seed("orders", [b"a"])
        url = broker.url
        broker.restart()
        assert broker.url == url
        with client.producer() as producer:
            assert producer.send("orders", b"b").offset == 1
        broker.restart(crash=True)
        assert broker.wait_values("orders", count=2) == [b"a", b"b"]
        broker.restart(keep_data=False)
        broker.seed("orders", [b"c"])
        assert broker.wait_values("orders", count=1) == [b"c"]


def test_a_crash_loses_what_was_not_synced(tmp_path: Path) -> None:
    for data_dir in (None, tmp_path):
        with Broker(data_dir=data_dir, config={"topic.durability": "os"}) as broker:
            broker.seed("orders", [b"a", b"b"])
            broker.restart()
            assert broker.wait_values("orders", count=2) == [b"a", b"b"], "a graceful stop syncs"
            broker.seed("orders", [b"c"])
            broker.restart(crash=True)
            assert [r.value for r in broker.records("orders")] == [b"a", b"b"]


def test_a_stopped_broker_can_start_again(tmp_path: Path) -> None:
    broker = Broker(data_dir=tmp_path)
    broker.seed("orders", [b"a"])
    broker.stop()
    broker.stop()
    assert (tmp_path / "meta.json").exists()
    broker.start()
    assert broker.wait_values("orders", count=1) == [b"a"]
    broker.stop()
    with Broker(data_dir=tmp_path) as again:
        assert again.wait_values("orders", count=1) == [b"a"]


def test_advance_lets_retention_act() -> None:
    config = {"topic.retention": "1h", "topic.segment_size": "4KiB"}
    with Broker(config=config) as broker:
        broker.seed("orders", [b"x" * 1000 for _ in range(20)])
        broker.advance(minutes=59)
        assert len(broker.records("orders")) == 20
        broker.advance(hours=2)
        broker.seed("orders", [b"new"])
        broker.advance(minutes=1)
        assert broker.records("orders")[-1].value == b"new"
        assert len(broker.records("orders")) < 20
        with pytest.raises(ValueError, match="forward"):
            broker.advance(seconds=-1)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_async_tests_may_wait_for_it_too(backend: str) -> None:
    async def test() -> None:
        with Broker() as broker:
            broker.seed("orders", [b"a"])
            broker.advance(hours=1)
            with broker.faults.delay(0.01):
                assert broker.wait_values("orders", count=1) == [b"a"]
            broker.restart(crash=True)
            assert len(broker.records("orders")) == 1
            async with tailrace.connect(broker.url) as client, client.producer() as producer:
                assert (await producer.send("orders", b"b")).offset == 1
            broker.client()

    anyio.run(test, backend=backend)


def test_events_are_the_brokers_own() -> None:
    with Broker() as one, Broker() as other:
        one.create_topic("orders")
        assert other.url != one.url
        assert any(event["event"] == "broker.ready" for event in one.events())
        assert not any("orders" in str(event) for event in other.events())
        assert len(one.events(1)) == 1


def test_http_is_there_if_asked_for() -> None:
    with Broker(http=True) as broker, Broker() as plain:
        assert broker.http_url is not None
        assert broker.http_url.startswith("http://127.0.0.1:")
        assert plain.http_url is None


def test_nothing_is_left_behind() -> None:
    with Broker() as broker:
        broker.seed("orders", [b"a"])
    before = set(threading.enumerate())
    with Broker() as broker:
        broker.seed("orders", [b"a"])
        client = broker.client()
        client.admin.list_topics()
    assert set(threading.enumerate()) <= before
    with pytest.raises(TailraceError):
        client.admin.list_topics()
    with pytest.raises(TailraceError), tailrace.sync.connect(broker.url, connect_timeout=0.2):
        pass


@pytest.mark.alone
@pytest.mark.slow
def test_it_starts_and_stops_in_milliseconds() -> None:
    with Broker():
        pass
    starts, stops = [], []
    for _ in range(50):
        began = time.perf_counter()
        broker = Broker()
        started = time.perf_counter()
        broker.stop()
        starts.append(started - began)
        stops.append(time.perf_counter() - started)
    p95 = sorted(starts)[47]
    assert p95 < 0.1, f"start p95 {p95 * 1000:.0f} ms"
    assert sorted(stops)[47] < 0.05, f"stop p95 {sorted(stops)[47] * 1000:.0f} ms"


def test_the_package_is_lazy() -> None:
    code = (
        "import sys, tailrace.testing, tailrace.testing.plugin;"
        "heavy = {'trio', 'anyio', 'msgspec', 'tailrace.broker', 'tailrace.simulation'};"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
