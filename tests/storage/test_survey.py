"""Compaction of segment files: the log keeps the newest of each key, in its place (S26-S28)."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tailrace.protocol.batch import parse_header
from tailrace.protocol.batch_header import ATTRIBUTE_DELETE_HORIZON
from tailrace.storage.rewrite import RewriteRefused
from tailrace.storage.survey import (
    STRETCH_BYTES,
    CompactJob,
    marks_path,
    run_compaction,
)
from tests.storage.compacting import TOMBSTONES_MS, Cleaner, Entry, no_pace, put, records, seal
from tests.storage.logs import SEED, QuickDisk, open_log

Action = list[tuple[int, int]] | str


def newest(history: dict[int, Entry]) -> dict[int, Entry]:
    """What must stay of a history, by offset: keyless records and the last of each key."""
    last = {key: offset for offset, (key, _) in history.items()}
    return {o: entry for o, entry in history.items() if entry[0] is None or last[entry[0]] == o}


def started(path: Path) -> Cleaner:
    disk = QuickDisk()
    return Cleaner(disk, open_log(path, disk=disk))


def test_only_the_newest_of_each_key_is_left_at_its_offset(tmp_path: Path) -> None:
    cleaner = started(tmp_path)
    put(cleaner.log, (b"a", b"1"), (b"b", b"1"))
    put(cleaner.log, (b"a", b"2"), (None, b"x"))
    seal(cleaner.log)
    put(cleaner.log, (b"b", b"3"))
    seal(cleaner.log)
    put(cleaner.log, (b"a", b"open"))
    assert cleaner.clean() == 2
    assert records(cleaner.log) == {
        2: (b"a", b"2"),
        3: (None, b"x"),
        4: (b"b", b"3"),
        5: (b"a", b"open"),
    }
    assert cleaner.log.segment_count == 2, "small neighbours became one"


def test_the_open_segment_supersedes_nothing_yet(tmp_path: Path) -> None:
    cleaner = started(tmp_path)
    put(cleaner.log, (b"a", b"1"))
    seal(cleaner.log)
    put(cleaner.log, (b"a", b"2"))
    cleaner.clean()
    assert records(cleaner.log) == {0: (b"a", b"1"), 1: (b"a", b"2")}


def test_a_tombstone_stays_for_its_time_and_hides_what_it_deleted(tmp_path: Path) -> None:
    cleaner = started(tmp_path)
    put(cleaner.log, (b"a", b"1"), (b"b", b"1"))
    put(cleaner.log, (b"a", None))
    seal(cleaner.log)
    cleaner.clean(now_ms=10)
    kept = {1: (b"b", b"1"), 2: (b"a", None)}
    assert records(cleaner.log) == kept
    assert horizons(cleaner) == [10 + TOMBSTONES_MS]
    cleaner.clean(now_ms=10 + TOMBSTONES_MS)
    assert records(cleaner.log) == kept
    cleaner.clean(now_ms=11 + TOMBSTONES_MS)
    assert records(cleaner.log) == {1: (b"b", b"1")}


def horizons(cleaner: Cleaner) -> list[int]:
    """Of all batches that have one."""
    found: list[int] = []
    log, at = cleaner.log, cleaner.log.start
    while at < log.end:
        part = log.read(at, 1, log.end)
        header = parse_header(bytes(part.ranges[0].view()))
        if header.attributes & ATTRIBUTE_DELETE_HORIZON:
            found.append(header.base_timestamp)
        at = part.next_offset
    return found


def test_a_key_that_comes_back_after_its_tombstone_stays(tmp_path: Path) -> None:
    cleaner = started(tmp_path)
    put(cleaner.log, (b"a", None))
    seal(cleaner.log)
    cleaner.clean(now_ms=0)
    put(cleaner.log, (b"a", b"again"))
    seal(cleaner.log)
    cleaner.clean(now_ms=10 * TOMBSTONES_MS)
    assert records(cleaner.log) == {1: (b"a", b"again")}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), keys_max=st.integers(1, 12))
def test_any_history_comes_to_what_a_dict_has(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, keys_max: int
) -> None:
    """Appends, closings, cleanings and restarts, in any order."""
    path = tmp_path_factory.mktemp("log")
    cleaner, history, now_ms = started(path), dict[int, Entry](), 0
    cleaner.keys_max = keys_max
    record = st.tuples(st.integers(0, 8), st.integers(0, 5))
    actions = st.one_of(
        st.lists(record, min_size=1, max_size=5), st.sampled_from(["seal", "clean", "restart"])
    )
    for number, action in enumerate(data.draw(st.lists(actions, max_size=25))):
        now_ms += 300
        if isinstance(action, list):
            entries = list(map(entry_of, action, [number] * len(action)))
            base = put(cleaner.log, *entries, now_ms=now_ms).base_offset
            history |= dict(enumerate(entries, base))
        elif action == "seal":
            seal(cleaner.log)
        elif action == "clean":
            cleaner.clean(now_ms)
        else:
            cleaner.log.close(clean=bool(number % 2))
            cleaner.log = open_log(path, disk=QuickDisk(), clean=bool(number % 2))
    end = cleaner.log.end
    seal(cleaner.log)
    cleaner.clean(now_ms)
    found = records(cleaner.log)
    living = {o: e for o, e in newest(history).items() if e[0] is None or e[1] is not None}
    gone = newest(history).keys() - living.keys()  # tombstones: their time may have come
    assert {o: e for o, e in found.items() if o not in gone} == living
    assert found.keys() <= newest(history).keys()
    assert cleaner.log.end == end


def entry_of(drawn: tuple[int, int], number: int) -> Entry:
    key, value = drawn
    return (
        b"k%d" % key if key else None,
        b"%d-%d" % (number, value) if value else None,
    )


def test_long_segments_are_walked_stretch_by_stretch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailrace.storage import survey

    monkeypatch.setattr(survey, "STRETCH_BYTES", 150)
    cleaner, history = started(tmp_path), dict[int, Entry]()
    for number in range(60):
        entry = (b"k%d" % (number * 7 % 11), b"%d" % number)
        history[put(cleaner.log, entry).base_offset] = entry
    seal(cleaner.log)
    cleaner.clean()
    assert records(cleaner.log) == newest(history)
    assert STRETCH_BYTES > 150


# ── damage ───────────────────────────────────────────────────────────────────────────────────


def damaged(cleaner: Cleaner, wrong: Iterable[tuple[int, bytes]]) -> str:
    """Overwrite bytes of the first closed segment; its path."""
    path = cleaner.log.rewritable(1 << 40)[0].path
    file = cleaner.disk.open(path)
    for position, data in wrong:
        file.write([data], position)
    return path


def test_a_damaged_batch_ends_the_survey_and_changes_nothing(tmp_path: Path) -> None:
    cleaner = started(tmp_path)
    put(cleaner.log, (b"a", b"1"))
    put(cleaner.log, (b"a", b"2"))
    seal(cleaner.log)
    before = sorted(tmp_path.rglob("*"))
    path = damaged(cleaner, [(95, b"?")])
    with pytest.raises(RewriteRefused) as caught:
        cleaner.survey(cleaner.log.rewritable(9), 0)
    assert (caught.value.file, caught.value.position) == (path, 0)
    assert sorted(tmp_path.rglob("*")) == before


def test_marks_of_another_survey_are_refused(tmp_path: Path) -> None:
    cleaner = started(tmp_path)
    put(cleaner.log, (b"a", b"1"))
    put(cleaner.log, (b"a", b"2"))
    seal(cleaner.log)
    found = cleaner.survey(cleaner.log.rewritable(9), 0)
    Path(found.marks_path).write_bytes(bytes(4))
    job = CompactJob(
        cleaner.log.path, found.segments, found.marks_path, SEED, 0, TOMBSTONES_MS, 9, 250
    )
    with pytest.raises(OSError, match="not those of the survey"):
        run_compaction(cleaner.disk, job, no_pace)


def test_a_survey_tells_what_it_found_of_each_segment(tmp_path: Path) -> None:
    cleaner = started(tmp_path)
    put(cleaner.log, (b"a", b"1"), (b"b", None), (None, b"x"))
    seal(cleaner.log)
    put(cleaner.log, (b"a", b"2"), (b"c", b"3"))
    seal(cleaner.log)
    found = cleaner.survey(cleaner.log.rewritable(9), 0)
    told = [(one.records, one.superseded, one.keyless, one.unstamped) for one in found.segments]
    assert told == [(3, 1, 1, 1), (2, 0, 0, 0)]
    assert [one.changes for one in found.segments] == [True, False]
    assert found.marks_path == marks_path(cleaner.log.path)
    assert found.walks == 1
