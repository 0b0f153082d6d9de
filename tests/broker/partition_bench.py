"""A partition on a disk, and those who wait for it, for tests."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tailrace.broker.catalog import Leadership, Topic, new_topic
from tailrace.broker.config import Durability, TopicConfig, from_mapping
from tailrace.broker.metrics import Metrics
from tailrace.broker.partition import Partition
from tailrace.broker.shelf import log_config
from tailrace.protocol import texts
from tailrace.protocol.errors import (
    TailraceError,
)
from tailrace.storage.disk import OsDisk, OsFile
from tailrace.storage.log import Appended, Log
from tailrace.storage.rounds import sync_round
from tests.broker.harness import NOW_MS, batch

ID = bytes(range(16))


def settings(durability: Durability) -> TopicConfig:
    return replace(from_mapping({}).topic, durability=durability)


class FullDisk(OsDisk):
    """Fails writes with an errno on command."""

    error: int | None = None

    def open(self, path: str, *, create: bool = False) -> OsFile:
        file = super().open(path, create=create)
        write = file.write

        def failing(buffers: Sequence[bytes | bytearray | memoryview], position: int) -> None:
            if self.error is not None:
                raise OSError(self.error, "planted")
            write(buffers, position)

        file.write = failing  # type: ignore[method-assign]
        return file


class Producer:
    """A produce request with one batch per slot."""

    def __init__(self, acks: int = -1) -> None:
        self.acks = acks
        self.timeout_s = 30.0
        self.deadline = 30.0
        self.outcomes: dict[int, Appended | TailraceError] = {}

    def settle(self, slot: int, written: Appended, log_start: int) -> None:
        assert slot not in self.outcomes
        self.outcomes[slot] = written

    def refuse(self, slot: int, error: TailraceError) -> None:
        assert slot not in self.outcomes
        self.outcomes[slot] = error


class Reader:
    woken = 0

    def wake(self) -> None:
        self.woken += 1


def orders(*brokers: str) -> Topic:
    """The topic, with its copies wanted on these."""
    return new_topic("orders", ID, placement=[brokers], replicas=None, config={})


class Bench:
    """A partition on a disk, synced by hand."""

    def __init__(self, path: Path, durability: Durability = "fsync") -> None:
        self.taken_bytes = 0  # of the disk
        config = settings(durability)
        self.disk = FullDisk()
        self.log = Log.open(
            self.disk,
            str(path / "log"),
            topic_id=ID,
            partition=0,
            config=log_config(config, capacity_bytes=1 << 40, partitions=1),
            now_ms=NOW_MS,
            clean=False,
            topic="orders",
        )
        metrics = Metrics(version="0", topics_max=10, clock=lambda: 0.0)
        self.partition = Partition(
            *(orders("n1"), 0, config, self.log, metrics.topic("orders"), self), broker_id="n1"
        )
        self.log.begin_epoch(1)
        self.partition.lead(Leadership("n1", 1, ("n1",)))

    def appended(self, size_bytes: int) -> None:
        self.taken_bytes += size_bytes

    def rolled(self, partition: Partition) -> None:
        assert partition.log.segment_count > 1

    def failed(self, partition: Partition) -> None:
        assert not partition.serving

    def ran_out(self, partition: Partition, error: OSError) -> TailraceError:
        return texts.storage_full(
            *(partition.topic, partition.number),
            broker="n1",
            has="0 B free",
            limit="min_free 5%",
            retry_after_s=5.0,
        )

    def send(self, *batches: bytes, acks: int = -1) -> Producer:
        producer = Producer(acks)
        for slot, entry in enumerate(batches):
            self.partition.gather(memoryview(bytearray(entry)), producer, slot)
        self.partition.append(NOW_MS)
        return producer

    def want(self, *brokers: str) -> None:
        """The topic's copies are wanted on these from now on."""
        self.partition.reconfigure(orders(*brokers), self.partition.config)

    def sync(self) -> None:
        point = self.log.sync_point()
        sync_round(self.disk, [point])
        self.log.mark_synced(point)
        self.partition.advance()


def values(*texts_: bytes) -> bytes:
    return batch(ID, texts_)


def base_offsets(producer: Producer) -> list[int]:
    outcomes = [producer.outcomes[slot] for slot in sorted(producer.outcomes)]
    return [one.base_offset for one in outcomes if isinstance(one, Appended)]
