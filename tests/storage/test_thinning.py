"""A batch at the limits that loses records: it grows, and is cut where it does not fit."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tailrace.protocol import batch as batch_module
from tailrace.protocol.batch import (
    ATTRIBUTE_DELETE_HORIZON,
    BatchError,
    Columns,
    decode_columns,
    encode_entry,
    parse_header,
)
from tailrace.protocol.batch_header import BATCH_LENGTH_MIN
from tailrace.storage.producers import SEQUENCES
from tailrace.storage.rewrite import SegmentSource, rewrite
from tailrace.storage.thinning import Kept, Part, thin
from tests.storage.logs import SEED, QuickDisk

BASE = 100
SAME = (
    *("base_offset", "last_offset_delta", "record_count", "leader_epoch", "append_time"),
    *("producer_id", "producer_epoch", "base_sequence"),
)
Found = dict[int, tuple[bytes | None, bytes | None, int]]


def columns(sizes: Sequence[int | None]) -> Columns:
    """One record for each size of a value, None for a tombstone; keys and times of their own."""
    values = [None if size is None else bytes([at]) * size for at, size in enumerate(sizes)]
    keys: list[bytes | None] = [b"k%d" % at for at in range(len(sizes))]
    return Columns(1_000, list(range(len(sizes))), None, keys, values, None)


def encoded(found: Columns, base_sequence: int = 7) -> bytes:
    return encode_entry(
        SEED,
        found,
        base_offset=BASE,
        leader_epoch=3,
        append_time=2_000,
        producer_id=5,
        producer_epoch=1,
        base_sequence=base_sequence,
    )


def limit(monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> None:
    """Let no entry be made that is larger."""
    monkeypatch.setattr(batch_module, "BATCH_LENGTH_MAX", size_bytes - 36)


def cut(entry: bytes, keep: Sequence[int], horizon_ms: int | None = None) -> list[Part]:
    header = parse_header(entry)
    return thin(header, decode_columns(entry, header), Kept(keep, horizon_ms), seed=SEED)


def records(parts: Sequence[Part]) -> Found:
    """By offset: key, value, time."""
    found: Found = {}
    for _, entry in parts:
        if entry:
            header = parse_header(entry)
            left = decode_columns(entry, header)
            count = header.record_count
            deltas = left.offsets or range(count)
            times = [left.base_timestamp + at for at in left.timestamps or [0] * count]
            rows = zip(deltas, left.keys or [], left.values, times, strict=True)
            found |= {header.base_offset + at: rest for at, *rest in rows}  # type: ignore[misc]
    return found


def check(parts: Sequence[Part], entry: bytes, keep: Sequence[int]) -> None:
    """The kept records are where they were, and the parts continue each other."""
    whole = parse_header(entry)
    before = records([(whole, entry)])
    assert records(parts) == {BASE + at: before[BASE + at] for at in keep}
    offset, sequence = BASE, whole.base_sequence
    for header, data in parts:
        assert header.base_offset == offset
        assert header.base_sequence == sequence
        offset, sequence = header.next_offset, (header.last_sequence + 1) % SEQUENCES
        assert (header.append_time, header.leader_epoch) == (2_000, 3)
        if data:
            for field in SAME:
                assert getattr(parse_header(data), field) == getattr(header, field), field
    assert (offset, sequence) == (whole.next_offset, (whole.last_sequence + 1) % SEQUENCES)


def test_one_that_fits_stays_one() -> None:
    entry = encoded(columns([10] * 8))
    parts = cut(entry, [0, 3, 7])
    assert len(parts) == 1
    check(parts, entry, [0, 3, 7])


@pytest.mark.parametrize("base_sequence", [7, SEQUENCES - 3], ids=["", "sequences wrap"])
def test_one_that_grows_beyond_the_limit_is_cut_in_two(
    monkeypatch: pytest.MonkeyPatch, base_sequence: int
) -> None:
    entry = encoded(columns([0, *[50] * 100]), base_sequence)
    limit(monkeypatch, len(entry))
    keep = range(1, 101)
    parts = cut(entry, keep)
    assert [header.record_count for header, _ in parts] == [50, 50]
    assert all(len(data) <= len(entry) for _, data in parts)
    check(parts, entry, keep)


def test_one_large_record_stands_alone_over_its_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = encoded(columns([0, 500, 0]))
    limit(monkeypatch, BATCH_LENGTH_MIN + 36 + 513)
    parts = cut(entry, [1])
    assert [header.record_count for header, _ in parts] == [0, 1, 0]
    check(parts, entry, [1])


def test_what_fits_in_no_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = encoded(columns([0, 500, 0]))
    limit(monkeypatch, BATCH_LENGTH_MIN + 36 + 400)
    with pytest.raises(BatchError, match="do not fit"):
        cut(entry, [0, 1])


def test_only_the_part_with_tombstones_gets_a_delete_horizon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = encoded(columns([0, None, *[50] * 100]))
    limit(monkeypatch, len(entry))
    keep = range(1, 102)
    parts = cut(entry, keep, 9_000)
    marked = [bool(parse_header(data).attributes & ATTRIBUTE_DELETE_HORIZON) for _, data in parts]
    assert marked[0]
    assert not any(marked[1:])
    check(parts, entry, keep)


def test_a_segment_of_such_a_batch_is_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = encoded(columns([0, *[50] * 100]))
    limit(monkeypatch, len(entry))
    path = tmp_path / f"{BASE:020}.log"
    path.write_bytes(entry)
    result = rewrite(
        QuickDisk(),
        str(tmp_path),
        [SegmentSource(str(path), BASE, BASE + 101, len(entry))],
        SEED,
        lambda header, found, offsets: Kept([at for at, one in enumerate(offsets) if one > BASE]),
        index_interval=1,
        pace=lambda size_bytes: None,
    )
    assert (result.records_kept, result.records_dropped, result.summary.batches) == (100, 1, 2)
    assert (result.summary.base_offset, result.summary.next_offset) == (BASE, BASE + 101)
