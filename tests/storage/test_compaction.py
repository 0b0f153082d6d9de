"""Which records a compacted log keeps: held against a dict, in as many walks as memory asks."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from tailrace.protocol.batch import BatchHeader, decode_columns, encode_entry, parse_header
from tailrace.protocol.batch_header import ATTRIBUTE_DELETE_HORIZON
from tailrace.protocol.columns import Columns
from tailrace.storage.compaction import (
    Cleaning,
    KeyBatch,
    Keys,
    Marks,
    SegmentFindings,
    marks_bytes,
    survey,
)
from tailrace.storage.rewrite import Kept

KEY = st.one_of(st.none(), st.integers(0, 12).map(lambda n: b"k%d" % n))
BATCHES = st.lists(st.lists(KEY, min_size=1, max_size=9), max_size=12)
HORIZON = ATTRIBUTE_DELETE_HORIZON


def surveyed(
    batches: Sequence[Keys], dirty_from: int, *, keys_max: int = 100, seed: int = 1
) -> tuple[list[list[int]], SegmentFindings, int]:
    """The indexes that stay of each batch, what was found, and how many walks it took."""
    places: list[int] = []
    end = 0
    for keys in batches:
        places.append(end)
        end += marks_bytes(len(keys))
    marks, findings = Marks(bytearray(end)), SegmentFindings()

    def newest_first() -> Iterable[KeyBatch]:
        for number in reversed(range(len(batches))):
            keys = batches[number]
            has_keys = any(key is not None for key in keys)
            dirty = number >= dirty_from
            yield KeyBatch(0, places[number], keys if has_keys else None, len(keys), dirty)

    walks = survey(newest_first, marks, [findings], seed=seed, keys_max=keys_max)
    stay = [marks.staying(at, len(keys)) for at, keys in zip(places, batches, strict=True)]
    return stay, findings, walks


def newest(batches: Sequence[Keys]) -> list[list[int]]:
    """The same by a dict: keyless records, and the last of each key."""
    last = {
        key: (number, index)
        for number, keys in enumerate(batches)
        for index, key in enumerate(keys)
    }
    return [
        [i for i, key in enumerate(keys) if key is None or last[key] == (number, i)]
        for number, keys in enumerate(batches)
    ]


@given(BATCHES, st.integers(1, 20), st.integers(0, 1 << 63))
def test_the_newest_of_each_key_stays(batches: list[Keys], keys_max: int, seed: int) -> None:
    stay, findings, _ = surveyed(batches, 0, keys_max=keys_max, seed=seed)
    assert stay == newest(batches)
    assert findings.superseded == sum(map(len, batches)) - sum(map(len, stay))
    assert findings.keyless == sum(list(keys).count(None) for keys in batches)


@given(BATCHES, BATCHES, st.integers(1, 20))
def test_behind_a_clean_part_the_result_is_that_of_the_whole(
    before: list[Keys], after: list[Keys], keys_max: int
) -> None:
    kept, _, _ = surveyed(before, 0)
    clean = [
        [keys[index] for index in stay] for keys, stay in zip(before, kept, strict=True) if stay
    ]
    stay, _, _ = surveyed([*clean, *after], len(clean), keys_max=keys_max)
    assert stay == newest([*clean, *after])


def test_one_walk_does_while_the_keys_fit() -> None:
    batches = [[b"%d" % n] for n in range(100)]
    assert surveyed(batches, 0, keys_max=100)[2] == 1
    assert surveyed(batches, 0, keys_max=99)[2] > 1


def test_walks_are_about_as_many_as_the_keys_ask_for() -> None:
    batches = [[b"%d-%d" % (number, n) for n in range(100)] for number in range(100)]
    stay, _, walks = surveyed([*batches, *batches], 0, keys_max=1000)
    assert sum(map(len, stay[:100])) == 0
    assert sum(map(len, stay[100:])) == 10_000
    assert 10 <= walks <= 16


def test_at_most_so_many_keys_are_remembered_between_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tailrace.storage import compaction

    sizes: list[int] = []
    inner = compaction.Walk.superseded

    def watched(walk: compaction.Walk, keys: Keys, *, dirty: bool) -> bytes | None:
        found = inner(walk, keys, dirty=dirty)
        sizes.append(len(walk.seen))
        return found

    monkeypatch.setattr(compaction.Walk, "superseded", watched)
    surveyed([[b"%d-%d" % (number, n) for n in range(50)] for number in range(40)], 0, keys_max=99)
    assert max(sizes) <= 99


# ── the verdict ──────────────────────────────────────────────────────────────────────────────


def batch(
    keys: list[bytes | None] | None,
    values: list[bytes | None],
    *,
    base: int = 0,
    horizon_ms: int | None = None,
) -> tuple[BatchHeader, Columns]:
    columns = Columns(horizon_ms or 50, None, None, keys, values, None)
    attributes = 0 if horizon_ms is None else HORIZON
    entry = encode_entry(
        1, columns, base_offset=base, leader_epoch=1, append_time=50, attributes=attributes
    )
    header = parse_header(entry)
    return header, decode_columns(entry, header)


def judge(cleaning: Cleaning, found: tuple[BatchHeader, Columns]) -> Kept | str | None:
    header, columns = found
    seen = cleaning.glance(header)
    return seen if seen != "open" else cleaning(header, columns, range(len(columns.values)))


def cleaning(
    *batches: tuple[BatchHeader, Columns],
    superseded: Sequence[bytes] = (),
    tombstones: bool = False,
    now_ms: int = 1000,
    whole_below: int = 1 << 62,
    cleaned_min: int = 1 << 62,
) -> Cleaning:
    places: list[int] = []
    end = 0
    for header, _ in batches:
        places.append(end)
        end += marks_bytes(header.record_count)
    marks = Marks(bytearray(end))
    for at, found in zip(places, superseded, strict=False):
        marks.add(at, found)
    if tombstones:
        for at in places:
            marks.flag(at, 1)
    return Cleaning(
        marks,
        now_ms=now_ms,
        tombstone_retention_ms=500,
        whole_below=whole_below,
        cleaned_min=cleaned_min,
    )


def test_batches_stay_go_or_are_opened() -> None:
    three = [
        batch([b"a", b"b"], [b"1", b"2"], base=0),
        batch([b"a", b"b"], [b"1", b"2"], base=2),
        batch([b"a", b"b"], [b"1", b"2"], base=4),
    ]
    decide = cleaning(*three, superseded=[b"00", b"11", b"10"])
    assert judge(decide, three[0]) == "keep"
    assert judge(decide, three[1]) == "drop"
    assert judge(decide, three[2]) == Kept([1])


def test_a_tombstone_gets_its_horizon_when_it_is_first_cleaned() -> None:
    found = batch([b"a", b"b"], [b"1", None])
    decide = cleaning(found, tombstones=True)
    assert judge(decide, found) == Kept([0, 1], 1500)
    assert decide.next_horizon_ms == 1500


def test_a_superseded_tombstone_needs_no_horizon() -> None:
    found = batch([b"a", b"b"], [b"1", None])
    decide = cleaning(found, superseded=[b"01"], tombstones=True)
    assert judge(decide, found) == Kept([0])
    assert decide.next_horizon_ms is None


@pytest.mark.parametrize(
    ("now_ms", "whole_below", "goes"),
    [(1500, 10, False), (1501, 10, True), (1501, 1, False), (9999, 2, True)],
)
def test_a_tombstone_goes_when_its_time_has_come_and_nothing_older_is_left(
    now_ms: int, whole_below: int, goes: bool
) -> None:
    found = batch([b"a", b"b"], [b"1", None], horizon_ms=1500)
    decide = cleaning(found, now_ms=now_ms, whole_below=whole_below)
    assert judge(decide, found) == (Kept([0]) if goes else "keep")
    assert decide.tombstones_removed == int(goes)


@pytest.mark.parametrize("cleaned_min", [-1, 0, 1])
def test_a_tombstone_waits_until_every_replica_has_cleaned_past_it(cleaned_min: int) -> None:
    """S27: one that comes back with something older must still find it."""
    found = batch([b"a", b"b"], [b"1", None], horizon_ms=1500)
    decide = cleaning(found, now_ms=9999, cleaned_min=cleaned_min)
    assert judge(decide, found) == "keep"
    assert (decide.waits, decide.tombstones_removed, decide.next_horizon_ms) == (True, 0, None)
    decide = cleaning(found, now_ms=9999, cleaned_min=2)
    assert judge(decide, found) == Kept([0])
    assert (decide.waits, decide.tombstones_removed) == (False, 1)


def test_a_tombstone_that_something_else_keeps_does_not_wait_for_replicas() -> None:
    found = batch([b"a", b"b"], [b"1", None], horizon_ms=1500)
    decide = cleaning(found, now_ms=9999, whole_below=1, cleaned_min=0)
    assert judge(decide, found) == "keep"
    assert not decide.waits


def test_a_horizon_that_was_given_is_not_given_anew() -> None:
    found = batch([b"a", b"b", b"c"], [b"1", None, b"3"], horizon_ms=1200)
    decide = cleaning(found, superseded=[b"001"], tombstones=True)
    assert judge(decide, found) == Kept([0, 1])
    assert decide.next_horizon_ms == 1200


def test_a_horizon_with_no_tombstone_left_is_not_waited_for() -> None:
    found = batch([b"a", b"b"], [b"1", b"2"], horizon_ms=900)
    decide = cleaning(found)
    assert judge(decide, found) is None
    assert decide.next_horizon_ms is None


def test_a_record_without_key_and_value_is_no_tombstone() -> None:
    found = batch([b"a", None], [b"1", None])
    decide = cleaning(found, tombstones=True)
    assert judge(decide, found) is None


def test_a_batch_that_cannot_be_decoded_stays() -> None:
    header, _ = batch([b"a"], [b"1"])
    marks, findings = Marks(bytearray(marks_bytes(1))), SegmentFindings()
    survey(
        lambda: [KeyBatch(0, 0, None, 1, True, closed=True)], marks, [findings], seed=1, keys_max=9
    )
    decide = Cleaning(marks, now_ms=0, tombstone_retention_ms=1, whole_below=9)
    assert decide.glance(header) == "keep"
    assert findings == replace(SegmentFindings(), closed=1)


def test_batches_without_records_have_no_marks() -> None:
    empty = encode_entry(
        1,
        Columns(5, None, [], None, [], None),
        base_offset=0,
        last_offset_delta=7,
        leader_epoch=1,
        append_time=5,
    )
    found = batch([b"a"], [b"1"], base=8)
    decide = cleaning(found, superseded=[b"1"])
    assert decide.glance(parse_header(empty)) == "keep"
    assert judge(decide, found) == "drop"
    assert decide.marks_end == marks_bytes(1)
