"""Log files seen without a broker."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from tailrace.protocol.errors import InputError
from tailrace.storage import offline
from tailrace.storage.directory import partition_name
from tailrace.storage.log import Log
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
        "producer_id": 7,
        "producer_epoch": 0,
        "base_sequence": 0,
        "compression": "none",
        "control": False,
        "transactional": False,
        "checksum_ok": True,
        "header_ok": True,
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
    assert "offsets 2 to" in report.error.message
    assert all(other.ok for other in others)
    second = list(offline.dump(str(file)))[1]
    assert (second[0].checksum_ok, second[0].header_ok, second[1]) == (False, True, None)


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
