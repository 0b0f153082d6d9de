"""What the SDK counts in the user's process; see also tests/broker/test_metrics_rows.py."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import anyio
import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

import tailrace
from tailrace.client import metrics
from tailrace.client.metrics import FAMILIES, Instruments
from tailrace.client.room import Room
from tailrace.testing import Broker
from tests.broker.metrics_contract import SECONDS, promises
from tests.client.test_loop_watch import Stage
from tests.client.world import Run

PROMISED = {name: one for name, one in promises().items() if name.startswith("client_")}


RECONNECTS = "client_retries_total{reason=reconnect}"


def shown() -> dict[str, float]:
    """By name and labels, in the default registry."""
    text = prometheus_client.generate_latest().decode()
    return {
        one.name.removeprefix("tailrace_")
        + "".join(
            f"{{{key}={value}}}" for key, value in one.labels.items() if key != "le"
        ): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if one.name.startswith("tailrace_client_")
    }


def test_families_are_those_that_are_promised() -> None:
    found = {one.name.removeprefix("tailrace_"): (one.kind, one.labels) for one in FAMILIES}
    assert found == {name: (one.kind, one.labels) for name, one in PROMISED.items()}
    assert list(metrics.BOUNDS) == [float(bound) for bound in SECONDS.split()]
    assert all(one.doc for one in FAMILIES)


def test_sends_and_what_they_hold_are_counted(run: Run, broker: Broker) -> None:
    async def main() -> None:
        async with tailrace.connect(broker.url) as client, client.producer() as producer:
            await producer.send("counted", b"a")
            before = shown()
            delivery = producer.enqueue_nowait("counted", bytes(1_000))
            assert shown()["client_buffer_bytes"] >= before["client_buffer_bytes"] + 1_000
            await delivery
            after = shown()
            assert after["client_buffer_bytes"] == before["client_buffer_bytes"]
            count = "client_send_duration_seconds_count"
            assert after[count] == before[count] + 1

    run(main)


def test_what_is_tried_again_is_counted_by_the_error_before(run: Run) -> None:
    async def main() -> None:
        before = shown()
        with Broker() as broker:
            broker.create_topic("orders")
            async with tailrace.connect(broker.url) as client, client.producer() as producer:
                with broker.faults.error("T033", "produce", times=1):
                    await producer.send("orders", b"a")
        assert risen(before, "client_retries_total{reason=T033}") == 1

    run(main)


def test_an_attempt_to_reconnect_is_counted(run: Run) -> None:
    async def main() -> None:
        before = shown()
        with Broker() as broker:
            async with tailrace.connect(broker.url) as client:
                await client.admin.list_topics()
                with broker.faults.refuse_connections():
                    with broker.faults.drop_connections():
                        pass  # those that are open are closed
                    for _ in range(2_000):
                        if risen(before, RECONNECTS):
                            break
                        await anyio.sleep(0.005)
                assert await client.admin.list_topics() == []
        assert risen(before, RECONNECTS) >= 1

    run(main)


def test_skipped_records_are_counted_by_why(run: Run) -> None:
    async def main() -> None:
        before = shown()
        with Broker() as broker:
            await skip(broker)
        for reason in ("undecodable", "given_up", "out_of_range"):
            assert risen(before, f"client_skipped_records_total{{reason={reason}}}") == 1, reason

    run(main)


async def skip(broker: Broker) -> None:
    """One record for each reason."""
    broker.create_topic("orders")
    async with tailrace.connect(broker.url) as client:
        async with client.producer() as producer:
            for value in (b"1", b"{", b"2"):
                await producer.send("orders", value)

        async def handle(_: tailrace.Record[Any, Any]) -> None:
            raise ValueError("planted")

        policy = tailrace.retry(1).then_skip()
        async with client.consumer(
            *("orders",), start="earliest", value="json", on_decode_error="skip", stop_at_end=True
        ) as consumer:
            assert [record.value async for record in consumer] == [1, 2]
        async with client.consumer(
            *("orders",), start="earliest", on_out_of_range="earliest", stop_at_end=True
        ) as consumer:
            await client.admin.delete_records("orders", {0: 1})  # which it was to read
            assert [record.offset async for record in consumer] == [1, 2]
        await client.admin.delete_records("orders", {0: 2})
        async with client.consumer("orders", start="earliest", stop_at_end=True) as consumer:
            await consumer.run(handle, on_error=policy)


def test_a_blocked_loop_is_counted_in_seconds() -> None:
    before, stage = shown(), Stage()
    stage.pass_time(4, answering=False)
    stage.loop.answer()
    stage.pass_time(1, answering=True)
    stage.watch.end()
    assert risen(before, "client_blocked_loop_seconds_total") == pytest.approx(4.0)


def risen(before: dict[str, float], name: str) -> float:
    return shown().get(name, 0.0) - before.get(name, 0.0)


# ── the user's library ───────────────────────────────────────────────────────────────────────


class Library(ModuleType):
    """prometheus_client as it is, on a registry of the test's."""

    def __init__(self) -> None:
        super().__init__("prometheus_client")
        self.registry = prometheus_client.CollectorRegistry()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kind = getattr(prometheus_client, name)

        def make(*arguments: Any, **more: Any) -> Any:
            return kind(*arguments, registry=self.registry, **more)

        return make


@pytest.fixture
def library() -> Library:
    return Library()


def test_without_the_library_nothing_is_counted_and_the_sdk_does_not_import_it() -> None:
    nobody = Instruments({})
    nobody.sent(1.0)
    nobody.retried("T001")
    nobody.skipped("given_up", 1)
    assert nobody.blocked(1.0) is None
    program = (
        "import sys, json, tailrace, tailrace.sync, tailrace.client.producer;"
        "import tailrace.client.run, tailrace.client.heart, tailrace.broker.exposition;"
        "print(json.dumps([name for name in sys.modules if name.startswith('prometheus')]))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(told.stdout) == []


def test_an_import_after_the_start_counts_from_then_on(library: Library) -> None:
    modules: dict[str, Any] = {}
    counting, room = Instruments(modules), Room(1_000)
    counting.buffers(room)
    room.used = 70
    counting.sent(0.3)
    modules["prometheus_client"] = library
    counting.sent(0.3)
    value = library.registry.get_sample_value
    assert value("tailrace_client_send_duration_seconds_count") == 1
    assert value("tailrace_client_send_duration_seconds_bucket", {"le": "0.5"}) == 1
    assert value("tailrace_client_send_duration_seconds_bucket", {"le": "0.25"}) == 0
    assert value("tailrace_client_buffer_bytes") == 70
    del room
    assert value("tailrace_client_buffer_bytes") == 0


def test_what_may_happen_once_stands_at_0_before(library: Library) -> None:
    """Else an alert on its increase has nothing to compare the first time with."""
    counting = Instruments({"prometheus_client": library})
    counting.begin()
    value = library.registry.get_sample_value
    for reason in ("undecodable", "given_up", "out_of_range"):
        assert value("tailrace_client_skipped_records_total", {"reason": reason}) == 0
    assert value("tailrace_client_blocked_loop_seconds_total") == 0
    Instruments({}).begin()


def test_a_consumer_shows_what_it_has_not_skipped(
    run: Run, broker: Broker, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Instruments({"prometheus_client": library})
    monkeypatch.setattr("tailrace.client.fetcher.instruments", counting)
    topic = broker.name("nothing")
    broker.create_topic(topic)

    async def main() -> None:
        async with (
            tailrace.connect(broker.url) as client,
            client.consumer(topic, start="earliest", stop_at_end=True) as consumer,
        ):
            assert [record async for record in consumer] == []

    run(main)
    name = "tailrace_client_skipped_records_total"
    assert library.registry.get_sample_value(name, {"reason": "given_up"}) == 0


def test_a_library_that_is_half_imported_is_asked_again(library: Library) -> None:
    modules: dict[str, Any] = {"prometheus_client": ModuleType("prometheus_client")}
    counting = Instruments(modules)
    counting.retried("T001")
    modules["prometheus_client"] = library
    counting.retried("T001")
    retries = library.registry.get_sample_value("tailrace_client_retries_total", {"reason": "T001"})
    assert retries == 1


def test_a_name_that_is_taken_is_told_once_and_fails_nothing(
    library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tailrace.client")
    library.Counter("tailrace_client_retries", "Of somebody else.")
    asked: list[str] = []

    class Asked(Library):
        def __getattr__(self, name: str) -> Callable[..., Any]:
            asked.append(name)
            return super().__getattr__(name)

    again = Asked()
    again.registry = library.registry
    counting = Instruments({"prometheus_client": again})
    counting.retried("T001")
    counting.retried("T002")
    (line,) = caplog.messages
    assert line.startswith("tailrace_client_retries_total is not counted: Duplicate")
    assert asked == ["Counter"]  # to be refused anew takes 50 us, of each batch


def test_a_metric_that_another_thread_is_making_is_not_waited_for(library: Library) -> None:
    counting = Instruments({"prometheus_client": library})
    with counting._making:
        counting.retried("T001")
        assert counting.blocked(1.0) is None
    assert counting._made == {}
