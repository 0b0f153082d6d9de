"""What a start takes on trust: all below the mark, from whatever was saved of it; never too much.

Hints, index, snapshots and mark may lag behind the log, be lost or damaged in any combination.
"""

import itertools
from pathlib import Path

import pytest

from tailrace.storage import marks
from tailrace.storage.log import Log, LogConfig
from tailrace.storage.resume import NAMES
from tests.storage.logs import EPOCH, append, batch, entries, files, fill, holes, open_log, restore

LOG_0 = f"{0:020}.log"
CONFIG = LogConfig(segment_bytes=64 * 1024, index_interval_bytes=250)
HINT_BYTES = CONFIG.segment_bytes // 8


def write(log: Log, count: int, size: int = 60) -> None:
    """Batches of producers 4 and 5 in turn, each synced."""
    for _ in range(count):
        sequence = log.end // 2
        append(log, batch(bytes([log.end % 251]) * size, producer=(4 + log.end % 2, 0, sequence)))
        log.sync()


def killed(path: Path, count: int = 200) -> dict[int, bytes]:
    """A log of so many batches whose process was killed; its batches."""
    log = open_log(path, config=CONFIG)
    write(log, count)
    found = entries(log)
    log.close(clean=False)
    return found


def reopened(path: Path, kept: dict[int, bytes], *, full: bool = False) -> Log:
    """The log is what it was, to its producers too, and goes on."""
    log = open_log(path, config=CONFIG, full=full)
    assert not log.recovery.cuts
    assert entries(log) == kept
    assert log.flushed == log.end == len(kept)
    for back in (1, 2, 3, 4):
        offset = log.end - back
        again = batch(bytes([offset % 251]) * 60, producer=(4 + offset % 2, 0, offset // 2))
        [known] = append(log, again)
        assert (known.base_offset, known.duplicate) == (offset, True)
    return log


def damage(path: Path, name: str, position: int, data: bytes) -> None:
    with (path / "log" / name).open("r+b") as file:
        file.seek(position)
        file.write(data)


def test_nothing_below_the_mark_is_scanned(tmp_path: Path) -> None:
    kept = killed(tmp_path)
    log = reopened(tmp_path, kept)
    assert (log.recovery.scanned_bytes, log.recovery.batches) == (0, 0)
    assert log.recovery.adopted_bytes == log.size_bytes


def test_only_what_lies_behind_the_mark_is_scanned(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=CONFIG)
    write(log, 100)
    durable = log.size_bytes
    for _ in range(5):
        append(log)
    log.close(clean=False)
    again = open_log(tmp_path, config=CONFIG)
    assert again.recovery.batches == 5
    assert again.recovery.scanned_bytes == again.size_bytes - durable
    assert again.recovery.adopted_bytes == durable
    assert sorted(entries(again)) == list(range(105))


def test_the_walk_is_as_long_as_the_log_grew_since_the_last_hint(tmp_path: Path) -> None:
    read: list[int] = []
    for count in (40, 300):
        path = tmp_path / str(count)
        path.mkdir()
        killed(path, count)
        log = open_log(path, config=CONFIG)
        assert log.size_bytes > HINT_BYTES or count == 40
        read.append(log.recovery.walked_bytes)
    assert read[1] <= 2 * HINT_BYTES


def test_append_time_does_not_fall_over_a_start_that_reads_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=CONFIG)
    append(log, now_ms=5000)
    log.sync()
    log.close(clean=False)
    again = open_log(tmp_path, config=CONFIG)
    assert again.last_append_time == 5000
    assert append(again, now_ms=10)[0].append_time == 5000


@pytest.mark.slow
def test_every_combination_of_lost_helpers_gives_the_same_log(tmp_path: Path) -> None:
    kept = killed(tmp_path)
    saved = files(tmp_path)
    helpers = [name for name in saved if not name.endswith(".log")]
    assert set(NAMES) <= set(helpers)
    for count in range(len(helpers) + 1):
        for lost in itertools.combinations(helpers, count):
            restore(tmp_path, {name: data for name, data in saved.items() if name not in lost})
            reopened(tmp_path, kept).close(clean=False)
            reopened(tmp_path, kept).close(clean=False)


@pytest.mark.parametrize("name", ["flushed", *NAMES])
@pytest.mark.parametrize("how", ["empty", "flipped", "cut", "long"])
def test_damaged_hints_and_marks_are_not_believed(tmp_path: Path, name: str, how: str) -> None:
    kept = killed(tmp_path)
    data = (tmp_path / "log" / name).read_bytes()
    changed = {
        "empty": b"",
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:-3],
        "long": data + b"\0" * 100,
    }[how]
    (tmp_path / "log" / name).write_bytes(changed)
    reopened(tmp_path, kept)


@pytest.mark.slow
def test_helpers_may_each_be_of_another_moment(tmp_path: Path) -> None:
    """As a power cut leaves them: log and epochs are the newest, the rest from anywhere before."""
    log = open_log(tmp_path, config=CONFIG)
    moments: list[dict[str, bytes]] = []
    for _ in range(5):
        write(log, 45)
        moments.append(files(tmp_path))
    kept = entries(log)
    log.close(clean=False)
    last = moments[-1]
    for mark, first, second in itertools.product(range(5), repeat=3):
        mixed = dict(last)
        mixed["flushed"] = moments[mark]["flushed"]
        for name, moment in zip(NAMES, (first, second), strict=True):
            mixed.pop(name, None)
            if name in moments[moment]:
                mixed[name] = moments[moment][name]
        restore(tmp_path, mixed)
        reopened(tmp_path, kept).close(clean=False)


def test_hints_of_a_longer_log_are_removed(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=CONFIG)
    write(log, 100)
    early = files(tmp_path)
    write(log, 200)
    late = files(tmp_path)
    log.close(clean=False)
    # The power was cut: what the hints tell of was never on the disk.
    restore(tmp_path, {**early, **{name: late[name] for name in NAMES}})
    again = open_log(tmp_path, config=CONFIG)
    assert again.end == 100
    assert not set(NAMES) & set(files(tmp_path))
    for number in range(100):  # now it grows to be another log up to there
        append(again, batch(b"other" * 12, producer=(9, 0, number)))
        again.sync()
    again.close(clean=False)
    last = open_log(tmp_path, config=CONFIG)
    assert append(last, batch(b"other" * 12, producer=(9, 0, 99)))[0].base_offset == 199


def test_hints_do_not_survive_a_truncation(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=CONFIG)
    write(log, 200)
    log.truncate_to(100)
    assert not set(NAMES) & set(files(tmp_path))
    assert log.end == 100


def test_a_damaged_header_behind_the_hint_is_quarantined_at_once(tmp_path: Path) -> None:
    kept = killed(tmp_path, 150)
    size = len(kept[0])
    damage(tmp_path, LOG_0, 148 * size + 20, b"\xff\xff")
    log = open_log(tmp_path, config=CONFIG)
    assert holes(log) == [(148, 149)]
    assert entries(log) == {at: data for at, data in kept.items() if at != 148}
    producers = dict(log.producers)
    log.close(clean=False)
    again = open_log(tmp_path, config=CONFIG)
    assert (dict(again.producers), again.recovery.scanned_bytes) == (producers, 0)
    assert entries(again) == {at: data for at, data in kept.items() if at != 148}
    assert holes(again) == [(148, 149)]


def test_damage_is_found_before_it_is_served_and_the_newer_part_needs_no_wait(
    tmp_path: Path,
) -> None:
    kept = killed(tmp_path)
    size = len(kept[0])
    damage(tmp_path, LOG_0, 10 * size + 90, b"\xff\xff")
    log = open_log(tmp_path, config=CONFIG)
    fresh = append(log)[0].base_offset
    assert log.verify_pending(fresh) is None
    assert log.read(fresh, 100, log.end).length > 0
    assert log.quarantined == []
    verify = log.verify_pending(20)
    assert verify is not None
    verify()
    assert holes(log) == [(10, 11)]
    assert set(entries(log)) == {*range(10), *range(11, 201)}


def test_a_mark_that_does_not_fit_the_file_is_not_adopted(tmp_path: Path) -> None:
    kept = killed(tmp_path, 50)
    found = marks.decode_mark(memoryview((tmp_path / "log" / "flushed").read_bytes())[24:])
    assert found is not None
    for wrong in (
        found._replace(records=found.records + 1),
        found._replace(last_append_time=found.last_append_time + 1),
        found._replace(position=found.position - len(kept[0])),
    ):
        (tmp_path / "log" / "flushed").write_bytes(marks.encode_mark(wrong))
        log = open_log(tmp_path, config=CONFIG)
        assert log.recovery.adopted_bytes == 0
        assert set(entries(log)) == set(kept)
        log.close(clean=False)


def test_a_cut_in_the_marks_segment_leaves_what_is_below_the_mark(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=CONFIG)
    write(log, 30)
    durable = log.size_bytes
    fill(log, 3)
    log.close(clean=False)
    damage(tmp_path, LOG_0, durable + 5, b"\xff")
    again = open_log(tmp_path, config=CONFIG)
    assert (again.end, again.recovery.data_loss_possible) == (30, True)
    assert [epoch for epoch, _ in again.epochs] == [EPOCH]
    assert sorted(entries(again)) == list(range(30))
