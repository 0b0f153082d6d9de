"""How a broker process ends: its stages, what forces it, and what it leaves behind."""

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.broker.brokers import Broker, Start
from tests.broker.harness import Client, batch, produce_request, run

pytestmark = pytest.mark.slow

STAGES = ["drain", "handover", "finish", "flush", "release"]


async def connect(url: str) -> Client:
    host, _, port = url.removeprefix("tailrace://").rpartition(":")
    client = Client(await trio.open_tcp_stream(host.strip("[]"), int(port)))
    await client.hello()
    return client


def stages(broker: Broker) -> list[str]:
    return [line["stage"] for line in broker.lines("broker.stopping")]


def test_elapsed_counts_from_the_signal_through_all_stages(start: Start, tmp_path: Path) -> None:
    broker = start("--set", "topic.durability=os", faults=("sync=0.2",))

    async def fill(url: str) -> None:
        client = await connect(url)
        assert (await client.produce(await client.create("orders"), [b"x"])).error is None
        await client.stream.aclose()

    url = broker.ready()["url"]
    run(lambda: fill(url))
    (tmp_path / "slow").touch()
    assert broker.stop() == 0
    lines = broker.lines("broker.stopping")
    assert [line["stage"] for line in lines] == STAGES
    elapsed = [line["elapsed_ms"] for line in lines]
    assert elapsed == sorted(elapsed)
    assert elapsed[-1] - elapsed[-2] >= 200  # the flush


def test_a_request_that_does_not_end_is_given_up_at_shutdown_timeout(
    start: Start, tmp_path: Path
) -> None:
    broker = start("--set", "broker.shutdown_timeout=500ms", faults=("sync=60",))

    async def ask(url: str) -> None:
        client = await connect(url)
        topic_id = await client.create("orders")
        (tmp_path / "slow").touch()
        entry = batch(topic_id, [b"never answered"])
        number = await client.send(produce_request(topic_id, [entry]), entry)
        await client.metadata()  # answered: so the one before was taken up
        broker.process.send_signal(signal.SIGUSR1)
        (request,) = (await wait_logged(broker, "broker.tasks"))["requests"]
        assert "'test' at [::1]:" in request
        assert ": produce for " in request
        broker.process.send_signal(signal.SIGTERM)
        # The thread is inside a sync for a minute: the process leaves without it.
        assert await trio.to_thread.run_sync(broker.wait) == 1
        with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)):
            await client.wait(number)
        await client.stream.aclose()

    url = broker.ready()["url"]
    run(lambda: ask(url))
    first, last = broker.lines("broker.forced")
    assert (first["reason"], first["stage"]) == ("shutdown_timeout 500ms", "finish")
    (request,) = first["requests"]
    assert ": produce for " in request
    assert last["reason"] == "a thread does not end"
    assert stages(broker) == STAGES[:3]
    assert not (tmp_path / "data/clean").exists()


async def wait_logged(broker: Broker, event: str) -> dict[str, list[str]]:
    return await trio.to_thread.run_sync(broker.wait_logged, event)


def test_a_connection_that_says_nothing_does_not_keep_the_broker(start: Start) -> None:
    broker = start()
    host, _, port = broker.ready()["url"].removeprefix("tailrace://").rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port))):
        assert broker.stop() == 0
    assert stages(broker) == STAGES


def test_a_configuration_that_cannot_be_read_to_its_end_does_not_keep_the_broker(
    start: Start, tmp_path: Path
) -> None:
    """As on a network file system that hangs; here nobody ever writes into the pipe."""
    file = tmp_path / "tailrace.toml"
    file.write_text("[log]\nlevel = 'info'\n")
    broker = start()
    broker.ready()
    file.unlink()
    os.mkfifo(file)
    broker.process.send_signal(signal.SIGHUP)
    writer = -1

    def is_read() -> bool:
        nonlocal writer
        with suppress(OSError):  # ENXIO: nobody reads yet
            writer = os.open(file, os.O_WRONLY | os.O_NONBLOCK)
        return writer >= 0

    broker.wait_until(is_read)
    assert broker.stop() == 0
    assert stages(broker) == STAGES
    os.close(writer)


def test_a_stop_before_it_serves_ends_it_at_once(start: Start) -> None:
    broker = start(faults=("start=0.5",))
    broker.wait_logged("planted.start")
    assert broker.stop() == 0
    assert broker.lines("broker.ready") == []
    assert stages(broker) == ["release"]
    again = start()
    again.ready()
    assert again.stop() == 0


def test_a_second_signal_does_not_wait_for_the_disk(start: Start) -> None:
    broker = start(faults=("start=60",))
    broker.wait_logged("planted.start")
    broker.send(signal.SIGTERM, signal.SIGINT)
    assert broker.wait() == 1
    reasons = [line["reason"] for line in broker.lines("broker.forced")]
    assert reasons[0].startswith("second signal SIG")
    assert reasons[1:] == ["a thread does not end"]


def test_a_forced_end_keeps_what_was_acknowledged(start: Start) -> None:
    broker = start()
    topics: list[bytes] = []

    async def fill(url: str) -> None:
        client = await connect(url)
        topics.append(await client.create("orders"))
        for _ in range(10):
            assert (await client.produce(topics[0], [b"kept"])).error is None
        broker.send(signal.SIGTERM, signal.SIGINT)
        assert await trio.to_thread.run_sync(broker.wait) == 1
        await client.stream.aclose()

    async def read(url: str) -> None:
        client = await connect(url)
        answer, _ = await client.fetch(topics[0])
        assert answer.results[0].high_watermark == 10
        await client.stream.aclose()

    url = broker.ready()["url"]
    run(lambda: fill(url))
    again = start()
    url = again.ready()["url"]
    run(lambda: read(url))
    assert again.stop() == 0


def test_clean_is_there_only_between_a_clean_stop_and_the_next_start(
    start: Start, tmp_path: Path
) -> None:
    for _ in range(2):
        broker = start()
        broker.ready()
        assert not (tmp_path / "data/clean").exists()
        assert broker.stop() == 0
        assert (tmp_path / "data/clean").exists()
