"""What opening a log after a crash or damage yields: a prefix, a quarantine, never wrong bytes."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tailrace.storage import marks
from tailrace.storage.log import LogConfig
from tests.storage.logs import (
    EPOCH,
    append,
    batch,
    entries,
    files,
    fill,
    holes,
    open_log,
    restore,
)

LOG_0 = f"{0:020}.log"


def damage(path: Path, name: str, position: int, data: bytes) -> None:
    with (path / "log" / name).open("r+b") as file:
        file.seek(position)
        file.write(data)


def set_mark(path: Path, mark: marks.Mark) -> None:
    (path / "log" / "flushed").write_bytes(marks.encode_mark(mark))


def small_log(path: Path, *, flushed: int = 6, count: int = 9) -> dict[int, bytes]:
    """One segment of ``count`` batches, of which ``flushed`` are; the batches by offset."""
    log = open_log(path)
    fill(log, flushed, size=10)
    if flushed:
        log.sync()
    fill(log, count - flushed, size=10)
    log.close(clean=False)
    found = open_log(path)
    found.close(clean=False)
    kept = entries(log_of := open_log(path))
    log_of.close(clean=False)
    size = len(kept[0])
    set_mark(path, marks.Mark(flushed, 0, flushed * size))
    return kept


# ── a crash ──────────────────────────────────────────────────────────────────────────────────


def test_killed_process_loses_nothing_and_the_report_says_what_was_checked(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 5)
    append(log, batch(b"a", b"b", b"c"))
    log.close(clean=False)
    again = open_log(tmp_path)
    report = again.recovery
    assert (again.end, again.flushed, report.batches, report.records) == (8, 8, 6, 8)
    assert (report.scanned_bytes, report.truncated_bytes) == (again.size_bytes, 0)
    assert not report.cuts
    assert not report.quarantined
    assert not report.data_loss_possible


def test_clean_close_is_no_reason_to_believe_a_mark_that_power_took_back(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 3)
    log.sync()
    older = (tmp_path / "log" / "flushed").read_bytes()
    fill(log, 2)
    log.close(clean=True)
    (tmp_path / "log" / "flushed").write_bytes(older)  # it is overwritten in place, not synced
    again = open_log(tmp_path, clean=True)
    assert (again.end, again.flushed, again.recovery.batches) == (5, 5, 2)
    again.close(clean=True)
    assert open_log(tmp_path, clean=True).recovery.clean


@pytest.mark.parametrize("kept", [1, 10, 84, 85, 86, 120])
def test_torn_last_batch_is_cut_and_zeroed(tmp_path: Path, kept: int) -> None:
    log = open_log(tmp_path)
    fill(log, 3)
    start = log.size_bytes
    append(log, batch(b"x" * 100))
    end = log.size_bytes
    log.close(clean=False)
    damage(tmp_path, LOG_0, start + kept, bytes(end - start - kept))
    again = open_log(tmp_path)
    (cut,) = again.recovery.cuts
    assert (again.end, cut.position, cut.offset, cut.bytes <= kept) == (3, start, 3, True)
    assert again.recovery.truncated_bytes == cut.bytes > 0
    assert not again.recovery.data_loss_possible
    assert not any((tmp_path / "log" / LOG_0).read_bytes()[start:])


def test_sound_batches_behind_a_cut_are_reported(tmp_path: Path) -> None:
    kept = small_log(tmp_path)
    size = len(kept[0])
    damage(tmp_path, LOG_0, 7 * size, bytes(size))
    log = open_log(tmp_path)
    assert (log.end, log.recovery.data_loss_possible) == (7, True)
    assert log.recovery.truncated_bytes == 2 * size
    assert entries(log) == {at: kept[at] for at in range(7)}


def test_later_segments_behind_a_cut_go_and_are_reported(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    log.close(clean=False)
    damage(tmp_path, LOG_0, log.segments()[0].size_bytes - 20, b"damage")
    again = open_log(tmp_path)
    assert again.segment_count == 1
    assert again.end == log.segments()[0].next_offset - 1
    assert again.recovery.data_loss_possible
    assert again.recovery.truncated_bytes > 5000
    assert [name for name in files(tmp_path) if name.endswith(".log")] == [LOG_0]
    fill(again, 60)
    expected = entries(again)
    again.close(clean=False)
    assert entries(open_log(tmp_path)) == expected


def test_empty_segment_file_left_by_a_crash_is_harmless(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 3)
    log.close(clean=False)
    (tmp_path / "log" / f"{3:020}.log").touch()
    (tmp_path / "log" / f"{9:020}.log").touch()
    again = open_log(tmp_path)
    assert (again.end, again.recovery.truncated_bytes) == (3, 0)
    fill(again, 3)
    assert sorted(entries(again)) == list(range(6))


def test_half_written_checkpoints_are_removed(tmp_path: Path) -> None:
    open_log(tmp_path).close(clean=False)
    (tmp_path / "log" / "start.tmp").write_bytes(b"half")
    open_log(tmp_path)
    assert "start.tmp" not in files(tmp_path)


def test_interrupted_removal_of_old_segments_is_finished(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    log.sync()
    before = files(tmp_path)
    log.drop_before(40)
    after = files(tmp_path)
    log.close(clean=False)
    restore(tmp_path, {**before, "start": after["start"]})
    again = open_log(tmp_path)
    assert (again.start, again.end) == (log.start, 60)
    assert {name for name in files(tmp_path) if name.endswith(".log")} <= set(after)


# ── a clean stop ─────────────────────────────────────────────────────────────────────────────


def test_clean_stop_spares_the_scan(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    expected = entries(log)
    log.close(clean=True)
    again = open_log(tmp_path, clean=True)
    assert (again.recovery.clean, again.recovery.scanned_bytes) == (True, 0)
    assert (again.end, again.flushed, entries(again)) == (60, 60, expected)
    fill(again, 10)
    assert sorted(entries(again)) == list(range(70))


def test_settled_logs_can_share_one_round(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 10)
    log.settle()
    log.sync()
    log.close(clean=False)
    assert open_log(tmp_path, clean=True).recovery.clean


def test_clean_stop_spares_the_scan_without_an_index_too(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 10)
    expected = entries(log)
    log.close(clean=True)
    (tmp_path / "log" / f"{0:020}.index").unlink()
    again = open_log(tmp_path, clean=True)
    assert (again.recovery.clean, again.recovery.batches, again.end) == (True, 0, 10)
    assert entries(again) == expected


def test_index_of_an_earlier_clean_stop_does_not_hide_later_batches(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 10)
    log.close(clean=True)
    log = open_log(tmp_path, clean=True)
    fill(log, 60)
    log.close(clean=False)
    again = open_log(tmp_path)
    assert (again.end, sorted(entries(again))) == (70, list(range(70)))


# ── lost helpers ─────────────────────────────────────────────────────────────────────────────


def names_of_helpers(path: Path) -> list[str]:
    return [name for name in files(path) if not name.endswith(".log")]


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("how", ["lost", "empty", "flipped", "cut"])
def test_every_helper_file_may_be_lost_or_damaged(tmp_path: Path, how: str, clean: bool) -> None:
    log = open_log(tmp_path)
    for number in range(60):
        append(log, batch(b"v" * 60, producer=(4, 0, number)))
    log.sync()
    log.set_start(5)
    log.close(clean=True)
    saved = files(tmp_path)
    expected = entries(open_log(tmp_path, clean=True))
    for name in names_of_helpers(tmp_path):
        restore(tmp_path, saved)
        file = tmp_path / "log" / name
        data = saved[name]
        if how == "lost":
            file.unlink()
        elif how == "empty":
            file.write_bytes(b"")
        elif how == "flipped":
            file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        else:
            file.write_bytes(data[:-3])
        again = open_log(tmp_path, clean=clean)
        assert (again.end, again.quarantined, again.recovery.cuts) == (60, [], []), name
        assert {at: again_data for at, again_data in entries(again).items() if at >= 5} == expected
        assert append(again, batch(b"v", producer=(4, 0, 60)))[0].base_offset == 60, name
        again.close(clean=False)


def test_all_helpers_lost_at_once(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    log.close(clean=True)
    expected = entries(open_log(tmp_path))
    for name in names_of_helpers(tmp_path):
        (tmp_path / "log" / name).unlink()
    again = open_log(tmp_path, clean=True)
    assert (again.end, entries(again), again.epochs) == (60, expected, [(EPOCH, 0)])
    assert not again.quarantined


def test_lost_mark_never_cuts_older_segments(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    log.sync()
    log.close(clean=False)
    (tmp_path / "log" / "flushed").unlink()
    damage(tmp_path, LOG_0, 300, b"damage")
    again = open_log(tmp_path, full=True)
    assert (again.end, again.recovery.cuts) == (60, [])
    assert len(again.quarantined) == 1
    assert "flushed" in again.recovery.rebuilt


# ── corruption ───────────────────────────────────────────────────────────────────────────────


def test_damage_below_the_mark_is_quarantined_exactly(tmp_path: Path) -> None:
    kept = small_log(tmp_path)
    size = len(kept[0])
    damage(tmp_path, LOG_0, 2 * size + 90, b"\xff")
    log = open_log(tmp_path)
    (hole,) = log.quarantined
    assert (hole.position, hole.end) == (2 * size, 3 * size)
    assert (hole.first_offset, hole.next_offset) == (2, 3)
    assert entries(log) == {at: data for at, data in kept.items() if at != 2}
    assert not log.recovery.cuts


def test_damage_of_several_batches_in_a_row_is_fenced_in(tmp_path: Path) -> None:
    kept = small_log(tmp_path)
    size = len(kept[0])
    damage(tmp_path, LOG_0, size + 3, bytes(2 * size))
    log = open_log(tmp_path)
    assert holes(log)[0][0] == 1
    assert holes(log)[-1][1] == 4
    assert sorted(entries(log)) == [0, 4, 5, 6, 7, 8]


def test_damage_up_to_the_mark_ends_at_the_mark(tmp_path: Path) -> None:
    kept = small_log(tmp_path, flushed=6, count=6)
    size = len(kept[0])
    damage(tmp_path, LOG_0, 4 * size, bytes(2 * size))
    log = open_log(tmp_path)
    assert (holes(log), log.end) == ([(4, 6)], 6)
    fill(log, 3)
    again_expected = entries(log)
    log.close(clean=False)
    again = open_log(tmp_path)
    assert (entries(again), holes(again)) == (again_expected, [(4, 6)])
    assert sorted(again_expected) == [0, 1, 2, 3, 6, 7, 8]


def test_missing_segment_file_is_a_hole(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 80)
    log.close(clean=True)
    first, second, third = [one.base_offset for one in log.segments()][:3]
    (tmp_path / "log" / f"{second:020}.log").unlink()
    again = open_log(tmp_path, clean=True)
    assert holes(again) == [(second, third)]
    (hole,) = again.quarantined
    assert (hole.file, hole.position) == (str(tmp_path / "log" / f"{second:020}.log"), 0)
    assert hole.reason == "the segment file is missing"
    assert sorted(entries(again)) == [*range(first, second), *range(third, 80)]
    (tmp_path / "log" / f"{first:020}.log").unlink()
    again = open_log(tmp_path)
    assert (again.start, holes(again)) == (0, [(0, third)])


def test_missing_last_segment_file_is_named(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 80)
    log.close(clean=True)
    last = log.segments()[-1].base_offset
    path = tmp_path / "log" / f"{last:020}.log"
    path.unlink()
    again = open_log(tmp_path, clean=True)
    assert holes(again) == [(last, 80)]
    assert again.quarantined[0].file == str(path)
    assert sorted(entries(again)) == list(range(last))
    assert append(again)[0].base_offset == 80


def test_log_whose_files_are_all_gone_never_gives_out_offsets_again(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 10)
    log.close(clean=True)
    (tmp_path / "log" / LOG_0).unlink()
    again = open_log(tmp_path, clean=True)
    assert (again.start, again.end, holes(again)) == (0, 10, [(0, 10)])
    assert append(again)[0].base_offset == 10


def test_cut_off_file_below_the_mark_is_a_hole(tmp_path: Path) -> None:
    kept = small_log(tmp_path, flushed=6, count=6)
    size = len(kept[0])
    name = tmp_path / "log" / LOG_0
    name.write_bytes(name.read_bytes()[: 3 * size + 10])
    log = open_log(tmp_path)
    assert (holes(log), log.end) == ([(3, 6)], 6)
    assert append(log)[0].base_offset == 6
    assert sorted(entries(log)) == [0, 1, 2, 6]


def test_batch_of_another_partition_or_place_is_no_batch_here(tmp_path: Path) -> None:
    kept = small_log(tmp_path)
    size = len(kept[0])
    damage(tmp_path, LOG_0, 2 * size, kept[4])  # a misdirected write
    log = open_log(tmp_path)
    assert holes(log) == [(2, 3)]
    assert sorted(entries(log)) == [0, 1, 3, 4, 5, 6, 7, 8]


def test_sealed_segment_is_verified_before_it_is_first_served(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    log.sync()
    log.close(clean=False)
    size = len(entries(open_log(tmp_path))[0])
    damage(tmp_path, LOG_0, 3 * size + 40, b"\x55")
    again = open_log(tmp_path)
    assert again.quarantined == []
    assert sorted(entries(again)) == [0, 1, 2, *range(4, 60)]
    assert holes(again) == [(3, 4)]
    assert again.offset_for_time(1003, again.end) == (4, 1004)


def test_full_verification_finds_it_at_the_start(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    log.close(clean=True)
    damage(tmp_path, LOG_0, 400, b"\x55")
    again = open_log(tmp_path, clean=True, full=True)
    assert (len(again.quarantined), again.recovery.batches) == (1, 59)
    assert again.verify_pending(0) is None


def test_suspect_directory_is_written_and_synced_anew(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 10)
    log.close(clean=False)
    before = entries(open_log(tmp_path))
    again = open_log(tmp_path, suspect=True, clean=True)
    assert (entries(again), again.recovery.clean, again.flushed) == (before, False, 10)


def test_the_mark_in_a_suspect_directory_is_another_file(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 10)
    log.sync()
    before = (tmp_path / "log" / "flushed").stat().st_ino
    log.close(clean=False)
    assert open_log(tmp_path).flushed == 10
    assert (
        tmp_path / "log" / "flushed"
    ).stat().st_ino == before  # as it was: nothing more to be told
    assert open_log(tmp_path, suspect=True).flushed == 10
    assert (
        tmp_path / "log" / "flushed"
    ).stat().st_ino != before  # what a failed sync left is not believed


# ── any damage at any place ──────────────────────────────────────────────────────────────────


def check(path: Path, kept: dict[int, bytes], flushed: int) -> None:
    """Whatever was done to the file: no wrong bytes, nothing durable cut, the same once more."""
    log = open_log(path)
    found = entries(log)
    assert found.items() <= kept.items(), "bytes are served that were never written"
    fenced = {at for first, last in holes(log) for at in range(first, last)}
    assert log.end >= flushed, "something durable was cut"
    assert set(range(log.end)) == set(found) | fenced
    assert len(fenced) <= 2
    state = (log.start, log.end, log.epochs, holes(log), dict(log.producers))
    log.close(clean=False)
    saved = files(path)
    again = open_log(path)
    assert not again.recovery.cuts
    assert entries(again) == found
    assert (again.start, again.end, again.epochs, holes(again), dict(again.producers)) == state
    again.close(clean=False)
    assert files(path) == saved


@pytest.mark.slow
def test_any_flipped_bit_of_a_small_log(tmp_path: Path) -> None:
    kept = small_log(tmp_path, flushed=2, count=3)
    saved = files(tmp_path)
    for position in range(3 * len(kept[0])):
        restore(tmp_path, saved)
        bit = 1 << position % 8
        damage(tmp_path, LOG_0, position, bytes([saved[LOG_0][position] ^ bit]))
        check(tmp_path, kept, 2)


def test_any_truncation_of_a_small_log(tmp_path: Path) -> None:
    kept = small_log(tmp_path, flushed=2, count=3)
    saved = files(tmp_path)
    for length in range(0, 3 * len(kept[0]), 3):
        restore(tmp_path, {**saved, LOG_0: saved[LOG_0][:length]})
        check(tmp_path, kept, 2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), flushed=st.integers(0, 9))
def test_any_damage_to_any_range(tmp_path: Path, data: st.DataObject, flushed: int) -> None:
    (tmp_path / "log").mkdir(exist_ok=True)
    restore(tmp_path, {})
    kept = small_log(tmp_path, flushed=flushed, count=9)
    total = 9 * len(kept[0])
    position = data.draw(st.integers(0, total - 1))
    length = data.draw(st.integers(1, 100))
    content = data.draw(st.one_of(st.just(bytes(length)), st.binary(min_size=1, max_size=length)))
    damage(tmp_path, LOG_0, position, content)
    check(tmp_path, kept, flushed)


def test_zero_page_in_a_larger_log(tmp_path: Path) -> None:
    config = LogConfig(segment_bytes=64 * 1024)
    log = open_log(tmp_path, config=config)
    fill(log, 200, size=100)
    log.sync()
    log.close(clean=False)
    kept = entries(open_log(tmp_path, config=config))
    saved = files(tmp_path)
    for page in range(0, log.size_bytes - 4096, 4096):
        restore(tmp_path, saved)
        damage(tmp_path, LOG_0, page, bytes(4096))
        again = open_log(tmp_path, config=config)
        found = entries(again)
        (hole,) = again.quarantined
        assert again.end == 200
        fenced = range(hole.first_offset, hole.next_offset)
        assert found == {at: d for at, d in kept.items() if at not in fenced}
        again.close(clean=False)
