"""The log of one partition: what is appended is read back, by offset and by time."""

import os
from pathlib import Path

import pytest

from tailrace.protocol.batch import parse_header
from tailrace.protocol.errors import BrokerError, CorruptBatch, OffsetOutOfRange
from tailrace.storage.disk import OsDisk
from tailrace.storage.log import LogConfig
from tailrace.storage.rounds import sync_round
from tests.storage.logs import (
    ALL,
    EPOCH,
    SEED,
    FullDisk,
    QuickDisk,
    append,
    batch,
    entries,
    files,
    fill,
    open_log,
    refused,
)


def test_new_log_is_empty_and_starts_at_zero(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    assert (log.start, log.flushed, log.end, log.size_bytes, log.segment_count) == (0, 0, 0, 0, 1)
    assert log.last_append_time is None
    assert log.read(0, ALL, ALL).ranges == []


def test_appended_batches_get_dense_offsets_and_come_back_patched(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    first, second = append(log, batch(b"a", b"b"), batch(b"c"), now_ms=70)
    assert first == (0, 2, 70, False)
    assert second == (2, 3, 70, False)
    part = log.read(0, ALL, log.end)
    assert (part.first_offset, part.next_offset) == (0, 3)
    data = bytes(part.ranges[0].view())
    header = parse_header(data)
    assert (header.base_offset, header.leader_epoch, header.append_time) == (0, EPOCH, 70)
    assert parse_header(data, header.size_bytes).base_offset == 2


def test_append_time_never_falls_when_the_clock_does(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    append(log, now_ms=100)
    assert append(log, now_ms=40)[0].append_time == 100
    assert log.last_append_time == 100


def test_offset_inside_a_batch_yields_the_whole_batch(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    append(log, batch(b"a", b"b", b"c"), batch(b"d"))
    part = log.read(1, 1, log.end)
    assert (part.first_offset, part.next_offset, len(part.ranges)) == (0, 3, 1)


def test_read_is_bounded_by_bytes_and_by_offset(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 8)
    size = log.size_bytes // 8
    assert log.read(0, 3 * size, log.end).next_offset == 3
    assert log.read(0, 3 * size - 1, log.end).next_offset == 2
    assert log.read(2, ALL, 5).next_offset == 5
    assert log.read(5, ALL, 5).length == 0


def test_batch_that_is_only_partly_below_the_bound_is_left_out(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    append(log, batch(b"a"), batch(b"b", b"c"))
    assert log.read(0, ALL, 2).next_offset == 1
    assert log.read(1, ALL, 2).length == 0


def test_read_crosses_segments(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 40)
    assert log.segment_count > 2
    part = log.read(0, ALL, log.end)
    assert (part.next_offset, len(part.ranges)) == (40, log.segment_count)
    assert part.length == log.size_bytes


@pytest.mark.parametrize("offset", [-1, 6, 2])
def test_offset_outside_of_the_log_is_refused(tmp_path: Path, offset: int) -> None:
    log = open_log(tmp_path)
    fill(log, 5)
    log.sync()
    log.set_start(3)
    with pytest.raises(OffsetOutOfRange) as caught:
        log.read(offset, ALL, ALL)
    assert (caught.value.requested, caught.value.start, caught.value.end) == (offset, 3, 5)


def test_slice_outlives_the_removal_of_its_segment(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 40)
    part = log.read(0, 500, log.end)
    before = b"".join(bytes(piece.view()) for piece in part.ranges)
    log.sync()
    assert log.drop_before(30) > 0
    log.close(clean=False)
    assert os.pread(part.ranges[0].fileno(), 10, 0) == before[:10]
    assert b"".join(bytes(piece.view()) for piece in part.ranges) == before


def test_segments_roll_by_size_and_later_ones_are_read_through_indexes(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    facts = log.segments()
    assert all(one.sealed for one in facts[:-1])
    assert not facts[-1].sealed
    assert all(one.size_bytes <= 2000 for one in facts)
    assert [one.next_offset for one in facts[:-1]] == [one.base_offset for one in facts[1:]]
    for offset in range(60):
        assert log.read(offset, 1, log.end).first_offset == offset


def test_segment_rolls_by_age_of_its_first_batch(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=LogConfig(segment_bytes=4000, segment_age_ms=50))
    append(log, now_ms=100)
    append(log, now_ms=149)
    assert log.segment_count == 1
    append(log, now_ms=150)
    assert [one.base_offset for one in log.segments()] == [0, 2]


def test_idle_segment_is_rolled_when_old(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=LogConfig(segment_bytes=4000, segment_age_ms=50))
    assert not log.roll_if_old(1000)
    append(log, now_ms=100)
    assert not log.roll_if_old(149)
    assert log.roll_if_old(150)
    assert not log.roll_if_old(999)
    assert [one.base_offset for one in log.segments()] == [0, 1]
    assert append(log)[0].base_offset == 1


def test_batch_larger_than_a_segment_gets_one_of_its_own(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    append(log, batch(b"x" * 5000), batch(b"y"), batch(b"z" * 3000))
    assert [one.base_offset for one in log.segments()] == [0, 1, 2]
    assert len(entries(log)) == 3
    log.close(clean=False)
    assert len(entries(open_log(tmp_path))) == 3


def test_one_append_may_fill_several_segments(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    append(log, *[batch(b"v" * 200) for _ in range(40)])
    assert log.segment_count > 4
    assert sorted(entries(log)) == list(range(40))


def test_refused_batches_take_no_offset(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=LogConfig(segment_bytes=4000, record_bytes_max=1000))
    damaged = batch(b"a")
    damaged[-1] ^= 1
    assert refused(log, damaged) == "T028"
    assert refused(log, batch(b"a", seed=SEED + 1)) == "T028"
    assert refused(log, batch(b"a", timestamp=10**10)) == "T022"
    assert refused(log, batch(b"a" * 1200)) == "T021"
    assert log.end == 0
    results = log.append([damaged, batch(b"b")], leader_epoch=EPOCH, now_ms=0)
    assert results[1] == (0, 1, 0, False)


def test_offset_is_found_by_append_time(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    for number in range(50):
        append(log, batch(b"v" * 60), now_ms=1000 + 10 * (number // 2))
    assert log.offset_for_time(0, log.end) == (0, 1000)
    assert log.offset_for_time(1001, log.end) == (2, 1010)
    for number in range(50):
        time = 1000 + 10 * (number // 2)
        assert log.offset_for_time(time, log.end) == (number // 2 * 2, time)
    assert log.offset_for_time(1241, log.end) is None
    assert log.offset_for_time(1240, 40) is None


def test_offset_is_found_by_time_over_a_clock_that_was_set_back(tmp_path: Path) -> None:
    """Append times never fall (R20): what came after the step has the time from before it."""
    log = open_log(tmp_path)
    for now_ms in (1000, 1010, 5000, 1020, 1030, 4990, 5010):
        append(log, batch(b"v" * 700), now_ms=now_ms)  # two to a segment
    stamps = [1000, 1010, 5000, 5000, 5000, 5000, 5010]
    for time in range(995, 5015, 5):
        first = next((at for at, stamp in enumerate(stamps) if stamp >= time), None)
        expected = None if first is None else (first, stamps[first])
        assert log.offset_for_time(time, log.end) == expected
    again = open_log(tmp_path)
    append(again, now_ms=7)
    assert again.last_append_time == 5010
    assert again.offset_for_time(5001, again.end) == (6, 5010)


def test_time_before_the_start_finds_the_start(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    append(log, batch(b"a", b"b", b"c"), now_ms=10)
    append(log, now_ms=20)
    log.sync()
    log.set_start(2)
    assert log.offset_for_time(0, log.end) == (2, 10)
    log.set_start(3)
    assert log.offset_for_time(0, log.end) == (3, 20)


def test_nothing_is_flushed_before_a_round_and_all_of_its_point_after(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    append(log)
    assert log.needs_sync
    point = log.sync_point()
    append(log)
    sync_round(OsDisk(), [point])
    log.mark_synced(point)
    assert (log.flushed, log.end, log.needs_sync) == (1, 2, True)
    log.sync()
    assert (log.flushed, log.needs_sync) == (2, False)


def test_round_saves_the_indexes_of_sealed_segments_and_two_snapshots(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    assert not any(name.endswith(".index") for name in files(tmp_path))
    log.sync()
    names = set(files(tmp_path))
    sealed = [one.base_offset for one in log.segments() if one.sealed]
    assert {f"{base:020}.index" for base in sealed} <= names
    assert sum(name.startswith("producers-") for name in names) == 2


def test_log_that_is_never_synced_saves_its_indexes_all_the_same(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 300)
    log.close(clean=False)
    again = open_log(tmp_path)
    assert sorted(entries(again)) == list(range(300))


def test_full_disk_leaves_log_and_producers_as_they_were(tmp_path: Path) -> None:
    disk = FullDisk()
    log = open_log(tmp_path, disk=disk)
    append(log, batch(b"a", producer=(7, 0, 0)))
    before = entries(log)
    for room in (0, 1, 90, 150):
        disk.bytes_left = room
        with pytest.raises(OSError, match="No space left"):
            log.append(
                [batch(b"b", producer=(7, 0, 1)), batch(b"c" * 100)], leader_epoch=EPOCH, now_ms=5
            )
        assert (log.end, entries(log)) == (1, before)
    disk.bytes_left = None
    assert append(log, batch(b"b", producer=(7, 0, 1)))[0].base_offset == 1


def test_failed_append_leaves_no_bytes_that_a_crash_could_bring_back(tmp_path: Path) -> None:
    disk = FullDisk()
    log = open_log(tmp_path, disk=disk)
    fill(log, 3)
    disk.bytes_left = 400
    with pytest.raises(OSError, match="No space left"):
        log.append([batch(b"b"), batch(b"c"), batch(b"d" * 500)], leader_epoch=EPOCH, now_ms=5)
    log.close(clean=False)
    again = open_log(tmp_path)
    assert (again.end, again.recovery.truncated_bytes) == (3, 0)


def test_failed_roll_leaves_no_file(tmp_path: Path) -> None:
    disk = FullDisk()
    log = open_log(tmp_path, disk=disk)
    fill(log, 10)
    disk.bytes_left = 700
    with pytest.raises(OSError, match="No space left"):
        log.append([batch(b"v" * 300) for _ in range(4)], leader_epoch=EPOCH, now_ms=5)
    assert sum(name.endswith(".log") for name in files(tmp_path)) == 1
    disk.bytes_left = None
    fill(log, 30)
    log.close(clean=False)
    assert sorted(entries(open_log(tmp_path))) == list(range(40))


def test_failed_sync_stops_the_log_for_good(tmp_path: Path) -> None:
    disk = FullDisk()
    log = open_log(tmp_path, disk=disk)
    append(log)
    disk.failing_syncs = 1
    with pytest.raises(BrokerError) as caught:
        log.sync()
    assert caught.value.code == "T093"
    assert log.flushed == 0
    with pytest.raises(BrokerError):
        append(log)


def test_no_more_zeros_are_written_ahead_than_there_are_bytes(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=LogConfig(segment_bytes=1 << 20))
    append(log, batch(bytes(200_000)))
    assert log.write_ahead(1 << 30) == log.size_bytes
    for _ in range(3):
        append(log, batch(bytes(200_000)))
    assert log.write_ahead(1 << 30) == (1 << 20) - log.size_bytes  # to the end of the file


def test_zeros_written_ahead_are_no_part_of_the_log(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=LogConfig(segment_bytes=1 << 20))
    fill(log, 2)
    assert log.write_ahead(30_000) == 30_000 == log.zeros_ahead
    assert log.needs_sync
    assert log.write_ahead(1 << 30) == 65_536 - 30_000
    assert log.write_ahead(1 << 30) == 0
    fill(log, 5)
    log.close(clean=False)
    again = open_log(tmp_path)
    assert (again.end, again.recovery.truncated_bytes) == (7, 0)
    assert sorted(entries(again)) == list(range(7))


def test_old_segments_go_and_the_start_moves(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    log.sync()
    second = log.segments()[1]
    assert log.drop_before(second.next_offset - 1) == 1
    assert log.start == second.base_offset
    sealed = log.segment_count - 1
    assert log.drop_before(ALL) == sealed
    assert log.start == log.segments()[0].base_offset > second.base_offset
    assert log.segment_count == 1
    log.close(clean=False)
    assert open_log(tmp_path).start == log.start


def test_segment_stays_until_its_producers_are_in_a_durable_snapshot(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=LogConfig(segment_age_ms=10))
    append(log, batch(b"a", producer=(7, 0, 0)))
    log.sync()
    log.roll_if_old(10)
    assert log.drop_before(1) == 0
    log.set_start(1)
    assert (log.start, log.segment_count) == (1, 2)
    log.close(clean=False)
    log = open_log(tmp_path)
    assert (log.start, log.segment_count) == (1, 2)
    log.sync()
    assert log.segment_count == 1
    log.close(clean=False)
    log = open_log(tmp_path)
    assert append(log, batch(b"a", producer=(7, 0, 0)))[0] == (0, 1, 0, True)


def test_start_may_stand_inside_a_segment_and_survives(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    log.sync()
    log.set_start(41)
    assert min(entries(log)) == 41
    log.close(clean=True)
    again = open_log(tmp_path, clean=True)
    assert (again.start, min(entries(again)), again.end) == (41, 41, 60)


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("offset", [0, 1, 17, 30, 44, 59, 60])
def test_truncated_log_goes_on_from_there(tmp_path: Path, offset: int, flushed: bool) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    if flushed:
        log.sync()
    before = entries(log)
    log.truncate_to(offset)
    assert (log.end, log.flushed <= log.end) == (offset, True)
    assert entries(log) == {base: data for base, data in before.items() if base < offset}
    fill(log, 5)
    expected = entries(log)
    log.close(clean=False)
    again = open_log(tmp_path)
    assert (again.end, entries(again), again.quarantined) == (offset + 5, expected, [])
    assert not again.recovery.data_loss_possible


def test_truncation_inside_a_batch_removes_all_of_it(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    append(log, batch(b"a"), batch(b"b", b"c", b"d"))
    log.truncate_to(2)
    assert log.end == 1


def test_truncation_makes_sync_points_void(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 10)
    point = log.sync_point()
    log.truncate_to(4)
    sync_round(QuickDisk(), [point])
    log.mark_synced(point)
    assert (log.flushed, log.end) == (4, 4)


def test_epochs_are_kept_and_truncated_with_the_log(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.begin_epoch(3)
    log.append([batch()], leader_epoch=3, now_ms=0)
    log.append([batch(), batch()], leader_epoch=5, now_ms=0)
    log.begin_epoch(9)
    assert log.epochs == [(3, 0), (5, 1), (9, 3)]
    log.close(clean=False)
    log = open_log(tmp_path)
    assert log.epochs == [(3, 0), (5, 1), (9, 3)]
    log.truncate_to(2)
    assert log.epochs == [(3, 0), (5, 1)]


def test_epoch_that_could_not_be_saved_has_not_begun(tmp_path: Path) -> None:
    disk = FullDisk()
    log = open_log(tmp_path, disk=disk)
    disk.bytes_left = 0
    with pytest.raises(OSError, match="No space left"):
        log.append([batch()], leader_epoch=3, now_ms=0)
    assert (log.epochs, log.end) == ([], 0)
    disk.bytes_left = None
    log.append([batch()], leader_epoch=3, now_ms=0)
    assert log.epochs == [(3, 0)]


def test_many_segments_keep_few_files_open(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 600)
    log.sync()
    entries(log)
    names = [
        os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)
    ]
    held = [name for name in names if name.startswith(f"{tmp_path}/") and name.endswith(".log")]
    assert log.segment_count > 30
    assert len(held) <= 2 * (8 + 1)  # a map holds a descriptor of its own


def test_closed_log_holds_no_file(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    entries(log)
    log.close(clean=True)
    names = [
        os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)
    ]
    assert not [name for name in names if name.startswith(f"{tmp_path}/")]


def test_corrupt_range_names_file_position_and_offsets(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 10)
    log.close(clean=True)
    name = tmp_path / "log" / f"{0:020}.log"
    data = bytearray(name.read_bytes())
    size = log.segments()[0].size_bytes // 10
    data[4 * size + 100] ^= 4
    name.write_bytes(data)
    log = open_log(tmp_path, clean=True)
    assert log.quarantined == []
    work = log.verify_pending(0)
    assert work is not None
    work()
    assert log.verify_pending(0) is None
    with pytest.raises(CorruptBatch) as caught:
        log.read(4, ALL, log.end)
    details = caught.value.details
    assert (details["file"], details["position"]) == (str(name), 4 * size)
    assert (details["first_offset"], details["next_offset"]) == (4, 5)
    assert log.read(0, ALL, log.end).next_offset == 4
    assert sorted(entries(log)) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def _is_link(descriptor: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{descriptor}")
