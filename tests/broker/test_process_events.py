"""The events of the contract, each from a broker process to which it really happened.

``broker.stopping`` is in test_process_stop.py; those of replication come with replication.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tailrace import sync
from tests.broker.brokers import Broker, Start
from tests.broker.harness import Client, run
from tests.broker.test_process_stop import connect

pytestmark = pytest.mark.slow

FIELDS = ("time", "level", "event", "code", "message", "broker")


def with_client(broker: Broker, work: Callable[[Client], Awaitable[None]]) -> None:
    url = broker.ready()["url"]

    async def main() -> None:
        client = await connect(url)
        await work(client)
        await client.stream.aclose()

    run(main)


def told(line: dict[str, Any], **fields: object) -> None:
    """The line has the fields of all lines in their order, and these."""
    assert tuple(line)[: len(FIELDS)] == FIELDS
    assert isinstance(line["time"], int)
    assert line["broker"] == "n1"
    assert {name: line.get(name) for name in fields} == fields


async def produce(client: Client, topic_id: bytes, batches: int, size: int = 100) -> None:
    for _ in range(batches):
        assert (await client.produce(topic_id, [bytes(size)])).error is None


def test_ready_leader_and_segment(start: Start) -> None:
    broker = start("--set", "topic.segment_size=1MiB")

    async def work(client: Client) -> None:
        await produce(client, await client.create("orders"), 5, 500_000)

    with_client(broker, work)
    told(broker.wait_logged("broker.ready"), level="info", code=None)
    told(
        broker.wait_logged("partition.leader_changed"),
        **{"level": "info", "topic": "orders", "partition": 0, "leader": "n1", "leader_epoch": 1},
    )
    told(broker.wait_logged("segment.rolled"), level="info", topic="orders", partition=0)
    assert broker.stop() == 0


def dumped(path: Path) -> list[dict[str, int]]:
    """The batches of a file, as ``segment dump`` has them."""
    command = [sys.executable, "-m", "tailrace.cli", "segment", "dump", str(path), "-O", "json"]
    done = subprocess.run(command, capture_output=True, check=True)
    batches: list[dict[str, int]] = json.loads(done.stdout)["batches"]
    return batches


def spoil(folder: Path, batch: int) -> None:
    """Flip a byte in a batch of the only log."""
    (path,) = folder.glob("data/topics/*/*.log")
    at = dumped(path)[batch]
    with path.open("r+b") as file:
        file.seek(at["position"] + at["size_bytes"] - 1)
        last = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes((last ^ 0xFF,)))


@pytest.mark.parametrize(
    ("batch", "lost"),
    [pytest.param(-1, False, id="a torn tail"), pytest.param(1, True, id="good batches behind")],
)
def test_a_tail_that_is_cut(start: Start, tmp_path: Path, batch: int, lost: bool) -> None:
    broker = start("--set", "topic.durability=os")  # nothing is known to be durable

    async def work(client: Client) -> None:
        await produce(client, await client.create("orders"), 4)

    with_client(broker, work)
    broker.process.kill()
    broker.wait()
    spoil(tmp_path, batch)
    broker = start()
    broker.ready()
    lines = broker.lines("data-loss-possible")
    assert bool(lines) == lost
    if lost:
        told(lines[0], level="error", topic="orders", partition=0)
        assert "acknowledged records may be lost" in lines[0]["message"]
    else:
        told(
            broker.wait_logged("recovery.truncated"),
            **{"level": "warning", "topic": "orders", "partition": 0, "log_end": 3},
        )
    assert broker.stop() == 0


def test_every_log_that_is_gone_is_named(start: Start, tmp_path: Path) -> None:
    broker = start()

    async def work(client: Client) -> None:
        await client.create("orders", 8)

    with_client(broker, work)
    assert broker.stop() == 0
    for path in (tmp_path / "data/topics").iterdir():
        shutil.rmtree(path)
    broker = start()
    broker.ready()
    lines = broker.lines("data-loss-possible")  # more than five alike
    assert sorted(line["partition"] for line in lines) == list(range(8))
    told(lines[0], level="error", code="T033", topic="orders")
    assert "alike" not in lines[0]
    assert broker.stop() == 0


def test_the_disk_is_low_before_it_is_read_only(start: Start) -> None:
    broker = start("--set", "storage.max_size=8MiB", "--set", "topic.segment_size=1MiB")

    async def work(client: Client) -> None:
        topic_id = await client.create("orders")
        for _ in range(200):
            if (await client.produce(topic_id, [bytes(60_000)])).error is not None:
                return
        raise AssertionError("never refused")

    with_client(broker, work)
    read_only, low = broker.wait_logged("disk.read_only"), broker.wait_logged("disk.low")
    told(read_only, level="error", code="T031")
    told(low, level="warning", code=None)
    assert low["time"] <= read_only["time"]
    assert low["room_bytes"] > 0
    assert broker.stop() == 0


def test_a_slow_request(start: Start, tmp_path: Path) -> None:
    broker = start(faults=("sync=1.1",))

    async def work(client: Client) -> None:
        topic_id = await client.create("orders")
        (tmp_path / "slow").touch()
        await produce(client, topic_id, 1)
        (tmp_path / "slow").unlink()

    with_client(broker, work)
    line = broker.wait_logged("request.slow")
    told(line, level="warning", code=None, api="produce")
    assert line["elapsed_ms"] >= 1100
    assert broker.stop() == 0


def test_a_group_is_rebalanced(start: Start) -> None:
    broker = start()
    url = broker.ready()["url"]
    with sync.connect(url) as client:
        client.admin.create_topic("orders")
        with client.producer() as producer:
            producer.send("orders", b"x")
        with client.consumer("orders", group="billing", start="earliest") as consumer:
            assert next(iter(consumer)).value == b"x"
    line = broker.wait_logged("group.rebalanced")
    told(line, level="info", code=None, group="billing")
    assert {"reason", "generation", "took_ms"} <= line.keys()
    assert broker.stop() == 0


def test_foreign_protocols_and_the_rest_of_them_in_one_line(start: Start) -> None:
    broker = start()
    host, _, port = broker.ready()["url"].removeprefix("tailrace://").rpartition(":")
    for _ in range(9):
        with socket.create_connection((host.strip("[]"), int(port))) as foreign:
            foreign.sendall(b"GET / HTTP/1.1\r\n\r\n")
            foreign.settimeout(20)
            while foreign.recv(4096):
                pass
    first = broker.wait_logged("client.protocol_mismatch", 5)
    told(first, level="warning")
    assert first["code"].startswith("T")
    assert first["peer"].startswith("[::1]:")
    assert len(broker.lines("client.protocol_mismatch")) == 5
    broker.process.send_signal(signal.SIGTERM)
    assert broker.wait() == 0
    lines = broker.lines("client.protocol_mismatch")
    assert [line.get("suppressed") for line in lines] == [None] * 5 + [4]
