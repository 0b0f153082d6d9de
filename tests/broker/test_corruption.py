"""One flipped bit below the flushed mark: found, named, never served; the rest stays readable."""

import json
import urllib.request
from pathlib import Path

import pytest

import tailrace.sync
from tailrace import CorruptBatch, TopicPartition
from tailrace.testing import Broker

VALUES = [b"record %04d " % number + b"x" * 90 for number in range(400)]
PER_BATCH = 20
CONFIG = {"topic.segment_size": "16KiB"}  # so that several segments are sealed


def written(broker: Broker) -> None:
    """Two partitions, batches of 20 records, uncompressed so that a value can be found on disk."""
    broker.create_topic("orders", partitions=2)
    with broker.client() as client, client.producer(compression="none") as producer:
        for partition in (0, 1):
            for at in range(0, len(VALUES), PER_BATCH):
                producer.send_many("orders", VALUES[at : at + PER_BATCH], partition=partition)


def flip_bit(data_dir: Path, value: bytes, partition: int = 0) -> Path:
    """Flip one bit of that record on disk; the file it is in."""
    for path in sorted(data_dir.glob(f"topics/*-{partition}/*.log")):
        content = bytearray(path.read_bytes())
        at = content.find(value)
        if at >= 0:
            with path.open("r+b") as file:
                file.seek(at + 3)
                file.write(bytes([content[at + 3] ^ 0x10]))
            return path
    raise AssertionError(f"{value!r} is in no segment")


def read(
    client: tailrace.sync.Client, partition: int, start: int = 0
) -> tuple[list[bytes | None], CorruptBatch | None]:
    """What is served from an offset on, and the error that ended it."""
    at = TopicPartition("orders", partition)
    values: list[bytes | None] = []
    with client.consumer(partitions=[at], stop_at_end=True) as consumer:
        consumer.seek(at, start)
        try:
            values.extend(record.value for record in consumer)
        except CorruptBatch as error:
            return values, error
    return values, None


@pytest.mark.parametrize("number", [5, 205, 395], ids=["first", "middle", "active segment"])
@pytest.mark.parametrize("crash", [False, True], ids=["clean stop", "crash"])
def test_a_flipped_bit_is_found_named_and_never_served(
    tmp_path: Path, number: int, crash: bool
) -> None:
    with Broker(data_dir=tmp_path / "data", config=CONFIG) as broker:
        written(broker)
        if crash:
            broker.process.kill()
        else:
            broker.stop()
        path = flip_bit(tmp_path / "data", VALUES[number])
        broker.start()
        with broker.client() as client:
            values, error = read(client, 0)
            first = number - number % PER_BATCH
            assert values == VALUES[:first]
            assert error is not None
            assert error.code == "T035"
            assert (error.topic, error.partition, error.offset) == ("orders", 0, first)
            assert path.name in str(error)
            rest, error = read(client, 0, first + PER_BATCH)
            assert error is None
            assert rest == VALUES[first + PER_BATCH :]
            assert read(client, 1) == (VALUES, None)
            with client.producer() as producer:
                assert producer.send("orders", b"more", partition=0).offset == len(VALUES)
        told = [event for event in broker.events(1_000) if event.get("code") == "T094"]
        assert path.name in str(told)


def test_a_bit_that_flips_under_a_running_broker_is_found_by_the_consumer(tmp_path: Path) -> None:
    with Broker(data_dir=tmp_path / "data", config=CONFIG) as broker:
        written(broker)
        flip_bit(tmp_path / "data", VALUES[205])
        with broker.client() as client:
            values, error = read(client, 0)
            assert values == VALUES[:200]
            assert error is not None
            assert error.offset == 200
            assert read(client, 0, 220) == (VALUES[220:], None)


def test_damage_shows_in_the_health_of_cluster_and_broker(tmp_path: Path) -> None:
    with Broker(data_dir=tmp_path / "data", config=CONFIG, http=True) as broker:
        written(broker)
        broker.stop()
        flip_bit(tmp_path / "data", VALUES[205])
        broker.start()
        with broker.client() as client:
            assert client.admin.describe_cluster().healthy
            read(client, 0)
            cluster = client.admin.describe_cluster()
            said = "orders[0]: offsets 200 to 219 are damaged and not served"
            assert (cluster.healthy, cluster.problems) == (False, [said])
            with urllib.request.urlopen(f"{broker.http_url}/readyz") as answer:
                document = json.load(answer)
            assert (answer.status, document["status"]) == (200, "degraded")
            assert {"name": "disk", "ok": False, "detail": said} in document["checks"]
            client.admin.delete_records("orders", {0: 220})
            assert client.admin.describe_cluster().healthy
