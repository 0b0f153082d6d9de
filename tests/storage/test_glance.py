"""When the record at an offset was appended, without reading it in earnest."""

from pathlib import Path

from tailrace.storage.disk import OsFile
from tailrace.storage.log import Log, LogConfig
from tests.storage.logs import QuickDisk, append, batch, fill, open_log


def at(log: Log, offset: int) -> tuple[int, bool] | None:
    found = log.glance(offset)
    return None if found is None else (found.append_time, found.exact)


def test_every_offset_has_the_time_of_its_batch(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    for number in range(40):
        append(log, batch(b"x" * 60, b"y" * 60), now_ms=5_000 + number)
    assert log.segment_count > 2
    assert [at(log, offset) for offset in range(80)] == [
        (5_000 + offset // 2, True) for offset in range(80)
    ]
    log.close(clean=True)


def test_there_is_no_time_at_the_end_and_below_the_start_it_is_that_of_the_start(
    tmp_path: Path,
) -> None:
    log = open_log(tmp_path)
    assert at(log, 0) is None
    fill(log, 60)
    log.sync()
    log.set_start(33)
    assert at(log, 0) == at(log, 33) == (1_033, True)
    assert at(log, 60) is None
    log.close(clean=True)


def test_segments_since_begin_with_the_one_that_holds_the_offset(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    everything = log.segments()
    assert len(everything) > 2
    second = everything[1]
    assert list(log.segments_since(second.base_offset)) == everything[1:]
    assert list(log.segments_since(second.next_offset - 1)) == everything[1:]
    assert list(log.segments_since(log.end)) == everything[-1:]
    log.close(clean=True)


def test_what_was_not_verified_yet_is_not_verified_for_a_glance(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 60)
    log.close(clean=True)
    log = open_log(tmp_path, clean=True)
    assert log.verify_pending(0) is not None
    assert at(log, 7) == (1_007, True)
    assert log.verify_pending(0) is not None
    log.close(clean=True)


def test_damaged_headers_end_in_a_time_that_is_not_exact(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=LogConfig(segment_bytes=100_000, index_interval_bytes=100_000))
    fill(log, 20)
    log.roll()
    fill(log, 1)
    log.close(clean=True)
    file = tmp_path / "log" / f"{0:020}.log"
    data = bytearray(file.read_bytes())
    size = len(data.rstrip(b"\0")) // 20
    for junk in (b"\xff" * 100, b"\0" * 100, b"\x7f" * 100):
        file.write_bytes(data[: 8 * size] + junk + data[8 * size + 100 :])
        log = open_log(tmp_path, clean=True)
        found = at(log, 15)
        assert found is not None
        assert not found[1]
        assert found[0] <= 1_015
        log.close(clean=True)


def test_cold_bytes_are_not_read_at_once_but_by_work_for_a_thread(tmp_path: Path) -> None:
    class ColdFile(OsFile):
        warm = False

        def cached(self, position: int, length: int) -> bool:
            return ColdFile.warm

        def read(self, length: int, position: int) -> bytes:
            ColdFile.warm = True
            return super().read(length, position)

    class ColdDisk(QuickDisk):
        def open(self, path: str, *, create: bool = False) -> OsFile:
            file = super().open(path, create=create)
            file.__class__ = ColdFile
            return file

    log = open_log(tmp_path, disk=ColdDisk())
    fill(log, 60)
    found = log.glance(5)
    assert found is not None
    assert not found.exact
    assert 1_000 <= found.append_time <= 1_005
    assert found.warm is not None
    found.warm()
    assert at(log, 5) == (1_005, True)
    log.close(clean=True)
