"""One partition: order, acks by the high watermark, readers, a full and a broken disk."""

import errno
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tailrace.broker.catalog import Leadership, new_topic
from tailrace.broker.config import Durability, TopicConfig, from_mapping
from tailrace.broker.metrics import Metrics
from tailrace.broker.partition import Partition
from tailrace.broker.shelf import log_config
from tailrace.protocol import texts
from tailrace.protocol.errors import (
    EpochFenced,
    NotEnoughReplicas,
    NotLeader,
    OffsetNotAvailable,
    OffsetOutOfRange,
    OutOfOrderSequence,
    PartitionOffline,
    RequestTimeout,
    StorageFull,
    TailraceError,
)
from tailrace.protocol.messages import FetchPartition
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
        topic = new_topic("orders", ID, placement=[("n1",)], replicas=None, config={})
        metrics = Metrics(version="0", topics_max=10, clock=lambda: 0.0)
        self.partition = Partition(
            *(topic, 0, config, self.log, metrics.topic("orders"), self), broker_id="n1"
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

    def sync(self) -> None:
        point = self.log.sync_point()
        sync_round(self.disk, [point])
        self.log.mark_synced(point)
        self.partition.advance()


def values(*texts_: bytes) -> bytes:
    return batch(ID, texts_)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.log.close(clean=False)


def base_offsets(producer: Producer) -> list[int]:
    outcomes = [producer.outcomes[slot] for slot in sorted(producer.outcomes)]
    return [one.base_offset for one in outcomes if isinstance(one, Appended)]


def test_acks_all_is_settled_by_the_sync_that_covers_it_and_no_earlier(bench: Bench) -> None:
    first = bench.send(values(b"a", b"b"))
    point = bench.log.sync_point()
    second = bench.send(values(b"c"))
    assert first.outcomes == {}
    assert bench.partition.high_watermark == 0
    sync_round(bench.disk, [point])
    bench.log.mark_synced(point)
    bench.partition.advance()
    assert base_offsets(first) == [0]
    assert second.outcomes == {}
    assert bench.partition.high_watermark == 2
    bench.sync()
    assert base_offsets(second) == [2]


@pytest.mark.parametrize("acks", [0, 1])
def test_weaker_acks_are_settled_by_the_write(bench: Bench, acks: int) -> None:
    assert base_offsets(bench.send(values(b"a"), acks=acks)) == [0]
    assert bench.partition.high_watermark == 0  # and yet nobody sees it before it is durable


@pytest.mark.parametrize("durability", ["os", "replicated"])
def test_weaker_durability_settles_acks_all_by_the_write(
    tmp_path: Path, durability: Durability
) -> None:
    bench = Bench(tmp_path, durability)
    assert base_offsets(bench.send(values(b"a"))) == [0]
    assert bench.partition.high_watermark == 1
    bench.log.close(clean=False)


def test_batches_enter_the_log_in_the_order_they_were_gathered(bench: Bench) -> None:
    producer = bench.send(*(values(bytes([number])) for number in range(20)))
    bench.sync()
    assert base_offsets(producer) == list(range(20))


def test_a_refused_batch_does_not_hold_up_the_others(bench: Bench) -> None:
    damaged = bytearray(values(b"b"))
    damaged[-1] ^= 1
    producer = bench.send(values(b"a"), bytes(damaged), values(b"c"))
    assert list(producer.outcomes) == [1]
    bench.sync()
    assert base_offsets(producer) == [0, 1]


def test_a_batch_that_is_not_committed_in_time_is_given_up_but_stays_written(bench: Bench) -> None:
    late, patient = bench.send(values(b"a")), bench.send(values(b"b"))
    patient.deadline = 60.0
    assert not bench.partition.expire(29.9)
    assert bench.partition.expire(30.0)
    error = late.outcomes[0]
    assert isinstance(error, RequestTimeout)
    assert error.details["maybe_written"] is True
    bench.sync()
    assert base_offsets(patient) == [1]
    assert bench.partition.high_watermark == 2


def test_a_duplicate_waits_for_the_original_and_gets_its_offset(bench: Bench) -> None:
    entry = batch(ID, [b"a"], producer_id=7, producer_epoch=0, base_sequence=0)
    original, again = bench.send(entry), bench.send(entry)
    assert again.outcomes == {}
    bench.sync()
    assert base_offsets(original) == base_offsets(again) == [0]
    later = bench.send(entry)
    assert base_offsets(later) == [0]  # durable already
    gap = bench.send(batch(ID, [b"c"], producer_id=7, producer_epoch=0, base_sequence=5))
    assert isinstance(gap.outcomes[0], OutOfOrderSequence)


def test_readers_see_only_what_is_below_the_high_watermark(bench: Bench) -> None:
    reader = Reader()
    bench.partition.park(reader)
    bench.send(values(b"a"))
    assert bench.partition.read(0, 1 << 20).length == 0
    with pytest.raises(OffsetOutOfRange):
        bench.partition.read(1, 1 << 20)
    assert reader.woken == 0
    bench.sync()
    assert reader.woken == 1
    assert bench.partition.read(0, 1 << 20).next_offset == 1
    bench.partition.unpark(reader)
    bench.send(values(b"b"))
    bench.sync()
    assert reader.woken == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_and_changes_nothing(bench: Bench, code: int) -> None:
    bench.disk.error = code
    refused = bench.send(values(b"a"))
    assert isinstance(refused.outcomes[0], StorageFull)
    assert (bench.log.end, bench.taken_bytes) == (0, 0)
    bench.disk.error = None
    entry = values(b"b")
    accepted = bench.send(entry)
    assert bench.taken_bytes == len(entry)
    bench.sync()
    assert base_offsets(accepted) == [0]


def test_a_write_that_fails_otherwise_takes_the_partition_offline(bench: Bench) -> None:
    waiting = bench.send(values(b"a"))
    reader = Reader()
    bench.partition.park(reader)
    bench.disk.error = errno.EIO
    failed = bench.send(values(b"b"))
    assert isinstance(waiting.outcomes[0], PartitionOffline)
    assert isinstance(failed.outcomes[0], PartitionOffline)
    assert reader.woken == 1
    bench.disk.error = None
    assert isinstance(bench.send(values(b"c")).outcomes[0], PartitionOffline)
    with pytest.raises(PartitionOffline):
        bench.partition.read(0, 1)


def test_the_high_watermark_never_falls_when_durability_rises(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "os")
    bench.send(values(b"a"))
    assert bench.partition.high_watermark == 1
    bench.partition.reconfigure(settings("fsync"))
    assert bench.partition.high_watermark == 1
    waiting = bench.send(values(b"b"))
    assert waiting.outcomes == {}
    bench.sync()
    assert base_offsets(waiting) == [1]
    bench.log.close(clean=False)


def test_epochs_only_rise(bench: Bench) -> None:
    with pytest.raises(AssertionError):
        bench.partition.lead(Leadership("n1", 1, ("n1",)))


def test_what_was_written_is_doubtful_when_the_copy_goes_or_breaks(bench: Bench) -> None:
    waiting = bench.send(values(b"a"))
    error = bench.partition.not_leader()
    bench.partition.fail(error)
    assert waiting.outcomes[0].details["maybe_written"] is True  # type: ignore[union-attr]
    assert "maybe_written" not in error.details, "others are refused before anything is written"


def test_whoever_waits_is_sent_to_the_new_leader(bench: Bench) -> None:
    waiting, reader = bench.send(values(b"a")), Reader()
    bench.partition.park(reader)
    bench.partition.follow(Leadership("n2", 2, ("n1", "n2")))
    error = waiting.outcomes[0]
    assert isinstance(error, NotLeader)
    assert (error.details["leader"], error.details["maybe_written"]) == ("n2", True)
    assert reader.woken == 1
    assert isinstance(bench.send(values(b"b"), acks=1).outcomes[0], NotLeader)
    assert bench.log.end == 1


def test_a_high_watermark_stays_where_it_was_when_the_lead_is_lost(bench: Bench) -> None:
    bench.send(values(b"a"))
    bench.partition.step_down()
    bench.sync()
    assert (bench.partition.role, bench.partition.high_watermark) == ("none", 0)


# ── followers ────────────────────────────────────────────────────────────────────────────────

OF_THREE = Leadership("n1", 2, ("n1", "n2", "n3"), replicas=("n1", "n2", "n3"), revision=7)


def asks(offset: int, flushed: int, high_watermark: int = 0) -> FetchPartition:
    return FetchPartition(
        *(ID, 0, offset, 1 << 20, 2),
        last_fetched_epoch=2,
        flushed_end=flushed,
        high_watermark=high_watermark,
    )


class Copier:
    """A follower's fetch that waits."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def written(self, partition: Partition) -> None:
        self.heard.append("written")

    def moved(self, partition: Partition) -> None:
        self.heard.append("moved")

    def contradicted(self, partition: Partition, broker_id: str) -> None:
        self.heard.append(f"contradicted {broker_id}")


@pytest.fixture
def leading(bench: Bench) -> Bench:
    """Three replicas, all in sync, two of which it needs."""
    bench.log.begin_epoch(2)
    bench.partition.copies = 3
    bench.partition.lead(OF_THREE)
    return bench


def test_acks_leave_when_the_last_of_the_in_sync_set_has_flushed(leading: Bench) -> None:
    waiting = leading.send(values(b"a"))
    leading.sync()
    leading.partition.observe("n2", 5, asks(1, 1), 1.0)
    leading.partition.observe("n3", 6, asks(1, 0), 1.0)
    assert waiting.outcomes == {}
    leading.partition.observe("n3", 6, asks(1, 1), 1.1)
    assert base_offsets(waiting) == [0]


def test_too_few_in_sync_refuse_acks_all_alone(leading: Bench) -> None:
    leading.partition.learn(replace(OF_THREE, isr=("n1",), elr=("n2",), revision=8))
    refused = leading.send(values(b"a")).outcomes[0]
    assert isinstance(refused, NotEnoughReplicas)
    assert (refused.have, refused.need) == (1, 2)
    assert leading.log.end == 0
    assert base_offsets(leading.send(values(b"b"), acks=1)) == [0]


def test_a_frozen_partition_takes_nothing_until_it_thaws(leading: Bench) -> None:
    leading.partition.freeze()
    assert isinstance(leading.send(values(b"a")).outcomes[0], NotLeader)
    leading.partition.thaw()
    assert leading.send(values(b"a")).outcomes == {}


def test_followers_of_another_epoch_and_strangers_are_fenced(leading: Bench) -> None:
    leading.partition.observe("n2", 5, asks(0, 0), 1.0)
    leading.partition.admit("n2", 5, 2)
    for broker, broker_epoch, leader_epoch in (
        ("n2", 5, 1),
        ("n2", 5, 3),
        ("n2", 4, 2),
        ("n9", 5, 2),
    ):
        with pytest.raises(EpochFenced):
            leading.partition.admit(broker, broker_epoch, leader_epoch)
    leading.partition.follow(Leadership("n2", 3, ("n1", "n2")))
    with pytest.raises(NotLeader):
        leading.partition.admit("n2", 5, 2)


def test_where_logs_part_is_told_by_epochs(leading: Bench) -> None:
    leading.send(values(b"a"), values(b"b"))
    partition = leading.partition
    assert partition.divergence(2, 2) is None
    assert partition.divergence(-1, 0) is None
    assert partition.divergence(1, 1) == (-1, 0)  # nothing was written in epoch 1 here
    assert partition.divergence(2, 5) == (2, 2)
    with pytest.raises(OffsetOutOfRange):
        partition.divergence(-1, 5)


def test_a_new_leader_shows_no_watermark_before_its_followers_came(bench: Bench) -> None:
    bench.send(values(b"a"), acks=1)
    bench.log.begin_epoch(2)
    bench.partition.copies = 3
    bench.partition.lead(OF_THREE)
    assert bench.partition.shown_high_watermark is None
    with pytest.raises(OffsetNotAvailable):
        bench.partition.read(0, 100)
    bench.sync()
    for name in ("n2", "n3"):
        bench.partition.observe(name, 5, asks(1, 1), 1.0)
    assert bench.partition.shown_high_watermark == 1


def test_followers_that_wait_hear_of_appends_and_of_the_watermark(leading: Bench) -> None:
    copier = Copier()
    leading.partition.park_copier(copier)
    leading.send(values(b"a"))
    assert copier.heard == ["written"]
    leading.sync()
    leading.partition.observe("n2", 5, asks(1, 1), 1.0)
    leading.partition.observe("n3", 5, asks(1, 1), 1.0)
    assert copier.heard == ["written", "moved"]
    leading.partition.step_down()
    assert copier.heard[2:] == ["written"]


def test_a_follower_that_says_it_has_less_is_asked_anew_over_its_other_connections(
    leading: Bench,
) -> None:
    copier = Copier()
    leading.partition.park_copier(copier)
    leading.send(values(b"a", b"b"))
    leading.sync()
    leading.partition.observe("n2", 5, asks(2, 2), 1.0)
    leading.partition.observe("n2", 5, asks(2, 2), 1.0)
    assert copier.heard == ["written"]
    leading.partition.observe("n2", 5, asks(2, 1), 1.0)
    leading.partition.observe("n2", 5, asks(0, 0), 1.0)
    assert copier.heard[1:] == ["contradicted n2", "contradicted n2"]


def test_a_follower_is_told_of_what_it_does_not_know_once(leading: Bench) -> None:
    partition = leading.partition
    partition.observe("n2", 5, asks(0, 0, high_watermark=-1), 1.0)
    assert partition.has_news("n2", -1)
    partition.told("n2", -1)
    assert not partition.has_news("n2", -1)
    assert partition.has_news("n2", 40)
    partition.told("n2", 40)
    partition.observe("n2", 5, asks(0, 0), 2.0)
    assert not partition.has_news("n2", 40)


def test_a_follower_serves_what_it_knows_to_be_committed(bench: Bench) -> None:
    bench.send(values(b"a"), values(b"b"), acks=1)
    bench.partition.follow(Leadership("n2", 2, ("n1", "n2")))
    bench.partition.following.high_watermark = 1
    bench.sync()
    assert bench.partition.read(0, 1 << 20).next_offset == 1
    with pytest.raises(OffsetNotAvailable):
        bench.partition.read(2, 1 << 20)
