"""Log files seen without a broker."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from tailrace.protocol.errors import InputError
from tailrace.storage import offline
from tailrace.storage.directory import partition_name
from tailrace.storage.log import Log, LogConfig
from tailrace.storage.log_file import LogFile
from tailrace.storage.swap import SwapName
from tests.storage.logs import (
    EPOCH,
    PARTITION,
    SMALL,
    TOPIC_ID,
    QuickDisk,
    append,
    batch,
    fill,
)
from tests.storage.rewriting import make, put, settled, swap


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A partition's directory with three segments, 60 batches, synced up to 50."""
    folder = tmp_path / "topics" / partition_name(TOPIC_ID, PARTITION)
    folder.parent.mkdir()
    log = Log.open(
        QuickDisk(),
        str(folder),
        topic_id=TOPIC_ID,
        partition=PARTITION,
        config=SMALL,
        now_ms=0,
        clean=False,
    )
    append(log, batch(b"a", b"b", producer=(7, 0, 0)), now_ms=900)
    fill(log, 48)
    log.sync()
    fill(log, 10)
    log.close(clean=False)
    return folder


def logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def change(file: Path, position: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(position)
        opened.write(data)


def test_segments_are_listed_from_any_directory_above(folder: Path, tmp_path: Path) -> None:
    found = offline.list_segments(str(tmp_path))
    assert found == offline.list_segments(str(folder))
    assert [one.file for one in found] == [str(file) for file in logs(folder)]
    assert [one.base_offset for one in found][1:] == [one.next_offset for one in found][:-1]
    assert found[-1].next_offset == 60
    assert sum(one.records for one in found) == 60
    assert sum(one.batches for one in found) == 59
    assert (found[0].first_append_time, found[0].topic_id) == (900, TOPIC_ID.hex())
    assert [one.sealed for one in found] == [True] * (len(found) - 1) + [False]


def test_dump_shows_headers_and_records(folder: Path) -> None:
    (info, columns), *others = offline.dump(str(logs(folder)[0]))
    assert columns is not None
    assert columns.values == [b"a", b"b"]
    shown = asdict(info)
    assert shown.pop("checksum") == f"{int(info.checksum, 16):016x}"
    assert shown == {
        "position": 0,
        "size_bytes": info.size_bytes,
        "format": "columns",
        "base_offset": 0,
        "last_offset": 1,
        "records": 2,
        "leader_epoch": EPOCH,
        "append_time": 900,
        "base_timestamp": 1,
        "max_timestamp": 1,
        "delete_horizon": None,
        "producer_id": 7,
        "producer_epoch": 0,
        "base_sequence": 0,
        "compression": "none",
        "control": False,
        "transactional": False,
        "checksum_ok": True,
        "header_ok": True,
        "problem": None,
        "torn": False,
    }
    assert [one.base_offset for one, _ in others][:2] == [2, 3]


def test_sound_files_verify(folder: Path) -> None:
    reports = offline.verify([str(folder)])
    assert all(report.ok and report.torn_bytes == 0 for report in reports)
    assert sum(report.records for report in reports) == 60


def test_flipped_bit_is_named_and_the_rest_is_counted(folder: Path) -> None:
    file = logs(folder)[0]
    first = next(offline.dump(str(file)))[0].size_bytes
    change(file, first + 90, b"\xff")
    report, *others = offline.verify([str(file), *map(str, logs(folder)[1:])])
    assert not report.ok
    assert report.error is not None
    assert (report.error.position, report.error.code) == (first, "T094")
    assert "offsets 2 to 2 are not served" in report.error.message
    assert all(other.ok for other in others)
    second = list(offline.dump(str(file)))[1]
    assert (second[0].checksum_ok, second[0].header_ok, second[1]) == (False, True, None)


@pytest.mark.parametrize("at", [4, 10, 34, 40], ids=["magic", "check", "length", "field"])
def test_a_batch_without_a_sound_header_is_shown_by_its_place_only(folder: Path, at: int) -> None:
    file = logs(folder)[0]
    before = [info for info, _ in offline.dump(str(file))]
    change(file, before[3].position + at, b"\xa5")
    after = [info for info, _ in offline.dump(str(file))]
    assert [*after[:3], *after[4:]] == [*before[:3], *before[4:]]
    bad, was = after[3], before[3]
    assert (bad.position, bad.size_bytes) == (was.position, was.size_bytes)
    assert (bad.base_offset, bad.last_offset) == (was.base_offset, was.last_offset)
    assert (bad.header_ok, bad.checksum_ok, bad.records, bad.append_time) == (False, False, 0, -1)
    assert bad.problem is not None
    assert not bad.torn


def test_a_torn_tail_is_shown_as_one(folder: Path) -> None:
    file = logs(folder)[-1]
    last = list(offline.dump(str(file)))[-1][0]
    file.write_bytes(file.read_bytes()[: last.position + last.size_bytes - 1])
    torn = list(offline.dump(str(file)))[-1][0]
    assert (torn.position, torn.torn, torn.problem) == (last.position, True, "the batch is cut off")


def test_a_missing_file_is_named_and_the_one_before_it_is_ok(folder: Path) -> None:
    first, second, third = logs(folder)[:3]
    second.unlink()
    before, missing, *others = offline.verify([str(folder)])
    assert (before.file, before.ok) == (str(first), True)
    assert (missing.file, missing.ok) == (str(second), False)
    assert missing.error is not None
    said = f"the segment file is missing; offsets {int(second.stem)} to {int(third.stem) - 1} are"
    assert said in missing.error.message
    assert all(other.ok for other in others)


def test_a_missing_last_file_is_named(folder: Path) -> None:
    *_, marked, last = logs(folder)  # the mark stands in the last but one
    marked.unlink()
    last.unlink()
    *others, missing = offline.verify([str(folder)])
    assert all(other.ok for other in others)
    assert missing.file == str(marked)
    assert missing.error is not None
    assert f"offsets {int(marked.stem)} to 49 are not served" in missing.error.message


def test_a_file_that_lost_its_end_is_the_one_that_is_named(folder: Path) -> None:
    first, second = logs(folder)[:2]
    last = list(offline.dump(str(first)))[-1][0]
    first.write_bytes(first.read_bytes()[: last.position])
    report = offline.verify([str(first)])[0]
    assert report.error is not None
    assert f"offsets {last.base_offset} to {int(second.stem) - 1} are" in report.error.message


def test_torn_tail_is_ok(folder: Path) -> None:
    file = logs(folder)[-1]
    *_, (last, _) = offline.dump(str(file))
    change(file, last.position + 100, bytes(last.size_bytes - 100))
    (report,) = offline.verify([str(file)])
    assert report.ok
    assert 0 < report.torn_bytes <= 100


def test_sound_batches_behind_damage_are_no_torn_tail(folder: Path) -> None:
    file = logs(folder)[-1]
    *_, (before, _), (_, _) = offline.dump(str(file))
    change(file, before.position + 100, b"\xff")
    (report,) = offline.verify([str(file)])
    assert not report.ok


def test_file_that_was_moved_fails(folder: Path) -> None:
    other = folder.with_name(partition_name(TOPIC_ID, PARTITION + 1))
    shutil.copytree(folder, other)
    assert not any(report.ok for report in offline.verify([str(other)])[:-1])


def test_index_is_read_or_made(folder: Path) -> None:
    first = logs(folder)[0]
    stored = offline.index_entries(str(first.with_suffix(".index")))
    assert stored[0] == offline.IndexInfo(0, 0, 900)
    assert offline.index_entries(str(first)) == stored
    first.with_suffix(".index").unlink()
    assert offline.index_entries(str(first))[0] == stored[0]
    assert offline.index_entries(str(logs(folder)[-1]))


@pytest.mark.parametrize("name", ["notes.txt", f"{0:020}.log"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError):
        offline.verify([str(tmp_path / name)])


def test_missing_file_is_refused(folder: Path) -> None:
    with pytest.raises(InputError):
        offline.verify([str(folder / f"{99:020}.log")])


def test_nothing_is_written(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    offline.list_segments(str(folder))
    offline.verify([str(folder)])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


# ── rewritten logs ───────────────────────────────────────────────────────────────────────────


def sealed(tmp_path: Path) -> Log:
    """A log of two sealed segments, 20 batches of 2 records each, and an empty active one."""
    folder = tmp_path / "topics" / partition_name(TOPIC_ID, PARTITION)
    folder.parent.mkdir()
    log = Log.open(
        QuickDisk(),
        str(folder),
        topic_id=TOPIC_ID,
        partition=PARTITION,
        config=LogConfig(segment_bytes=1 << 20, index_interval_bytes=300),
        now_ms=0,
        clean=False,
    )
    for _ in range(2):
        for _ in range(20):
            put(log, 2)
        settled(log)
    return log


def test_a_rewritten_log_is_shown_as_it_is(tmp_path: Path) -> None:
    log = sealed(tmp_path)
    swap(QuickDisk(), log, [*range(7, 30), 41])
    log.sync()
    first, active = offline.list_segments(log.path)
    assert (first.base_offset, first.next_offset, first.records) == (0, 80, 56)
    assert (first.state, active.state) == ("sealed", "active")
    assert all(report.ok for report in offline.verify([log.path]))
    batches = list(offline.dump(first.file))
    empty, nothing = next(one for one in batches if not one[0].records)
    assert (empty.base_offset, empty.last_offset, empty.producer_id) == (8, 29, -1)
    assert nothing is not None
    assert nothing.values == []
    thinned = next(columns for info, columns in batches if info.base_offset == 6)
    assert thinned is not None
    assert (thinned.offsets, thinned.values) == ([0], [b"6"])
    assert [one.offset for one in offline.index_entries(first.file)][4:6] == [30, 32]


def test_a_half_swapped_log_is_shown_as_recovery_will_leave_it(tmp_path: Path) -> None:
    log = sealed(tmp_path)
    job = log.swap(make(QuickDisk(), log, range(7, 30)))
    half_made = [Path(log.path) / name for name in QuickDisk().list(log.path) if "tmp" in name]
    assert len(half_made) == 1
    assert [one.state for one in offline.list_segments(log.path)] == ["sealed", "sealed", "active"]
    job.publish()
    log.replace(job)
    new, first, second, active = offline.list_segments(log.path)
    assert Path(new.file).name == f"{0:020}-{80:020}.swap"
    assert (new.base_offset, new.next_offset, new.records) == (0, 80, 57)
    assert [one.state for one in (new, first, second)] == ["swap", "replaced", "replaced"]
    assert active.state == "active"
    (Path(log.path) / f"{40:020}.log").unlink()  # as far as the tidying came
    reports = offline.verify([log.path])
    assert [Path(report.file).suffix for report in reports] == [".swap", ".log"]
    assert all(report.ok for report in reports)
    assert len(list(offline.dump(new.file))) > 20
    assert offline.index_entries(new.file)[0].offset == 0
    assert all(report.ok for report in offline.verify([first.file, new.file]))
    job.finish()
    log.replaced(job)
    assert [one.state for one in offline.list_segments(log.path)] == ["sealed", "active"]


def test_damage_in_a_swap_file_is_corruption(tmp_path: Path) -> None:
    log = sealed(tmp_path)
    job = log.swap(make(QuickDisk(), log, range(7, 30)))
    job.publish()
    file = Path(SwapName(0, 80).path(log.path))
    change(file, 200, b"\xff\xff")
    report, *_ = offline.verify([log.path])
    assert (report.file, report.ok) == (str(file), False)


def test_segments_that_overlap_are_corruption(tmp_path: Path) -> None:
    log = sealed(tmp_path)
    old = (Path(log.path) / f"{40:020}.log").read_bytes()
    swap(QuickDisk(), log, range(30, 50))
    (Path(log.path) / f"{40:020}.log").write_bytes(old)
    report, *_ = offline.verify([log.path])
    assert not report.ok
    assert report.error is not None
    assert "in a segment that ends at 40" in report.error.message


def test_an_index_of_another_file_is_named(tmp_path: Path) -> None:
    log = sealed(tmp_path)
    index = Path(log.path) / f"{0:020}.index"
    old = index.read_bytes()
    swap(QuickDisk(), log, [0, *range(30, 50)])
    log.sync()
    assert all(report.ok for report in offline.verify([log.path]))
    index.write_bytes(old)
    report, wrong, *_ = offline.verify([log.path])
    assert report.ok
    assert (wrong.file, wrong.ok) == (str(index), False)
    assert wrong.error is not None
    assert wrong.error.code == "T094"


def test_what_a_broker_replaces_meanwhile_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = sealed(tmp_path)
    opened = LogFile.__init__

    def swap_first(self: LogFile, path: str) -> None:
        opened(self, path)
        monkeypatch.undo()
        swap(QuickDisk(), log, range(30, 50))

    monkeypatch.setattr(LogFile, "__init__", swap_first)
    reports = offline.verify([log.path])
    assert all(report.ok for report in reports)
    assert [report.records for report in reports] == [40, 0]
