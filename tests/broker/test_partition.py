"""One partition: order, acks by the high watermark, readers, a full and a broken disk."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace.broker.catalog import Leadership
from tailrace.broker.config import Durability
from tailrace.protocol.errors import (
    NotLeader,
    OffsetOutOfRange,
    OutOfOrderSequence,
    PartitionOffline,
    RequestTimeout,
    StorageFull,
)
from tailrace.storage.rounds import sync_round
from tests.broker.harness import batch
from tests.broker.partition_bench import ID, Bench, Reader, base_offsets, orders, settings, values


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.log.close(clean=False)


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
    bench.partition.reconfigure(orders("n1"), settings("fsync"))
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
