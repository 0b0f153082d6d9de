"""Records and batches are views: nothing is made that nobody looks at."""

import dataclasses

import pytest

from tailrace.client.records import Batch, Record, RecordMetadata, Slice, StoredBatch
from tailrace.protocol.batch import encode_entry, header_seed, parse_header
from tailrace.protocol.columns import Columns
from tailrace.protocol.errors import UsageError
from tests.client.world import Run

SEED = header_seed(bytes(16), 2)


def stored(columns: Columns, *, base_offset: int = 100) -> StoredBatch[bytes, bytes]:
    entry = encode_entry(SEED, columns, base_offset=base_offset, leader_epoch=7, append_time=9_000)
    return StoredBatch("orders", 2, parse_header(entry), columns)


def simple(count: int = 5, base_offset: int = 100) -> StoredBatch[bytes, bytes]:
    values: list[bytes | None] = [b"v%d" % n for n in range(count)]
    return stored(Columns(1_000, None, None, None, values, None), base_offset=base_offset)


def batch(*parts: Slice) -> Batch[bytes, bytes]:
    last = parts[-1]
    return Batch("orders", 2, parts, last.stored.offset(last.stop))


def test_record_reads_every_column() -> None:
    columns = Columns(
        1_000,
        [0, 5],
        [0, 3],
        [b"k", None],
        [b"value", None],
        [[("a", b"1"), ("b", None)], None],
    )
    first, second = Record(stored(columns), 0), Record(stored(columns), 1)
    assert (first.topic, first.partition, first.offset, second.offset) == ("orders", 2, 100, 103)
    assert (first.timestamp, second.timestamp) == (1_000, 1_005)
    assert (first.append_time, first.leader_epoch) == (9_000, 7)
    assert (first.key, first.value, second.key, second.value) == (b"k", b"value", None, None)
    assert (first.raw_key, first.raw_value) == (b"k", b"value")
    assert first.headers == [("a", b"1"), ("b", None)]
    assert second.headers == []
    assert first.size_bytes == 1 + 5 + 2 + 1
    assert "orders[2]@100" in repr(first)


def test_record_is_read_only_and_its_headers_are_a_copy() -> None:
    columns = Columns(1_000, None, None, None, [b"v"], [[("a", None)]])
    record = Record(stored(columns), 0)
    with pytest.raises(AttributeError):
        record.value = b"other"  # type: ignore[misc]
    record.headers.clear()
    assert record.headers == [("a", None)]


def test_columns_of_a_batch_join_its_slices() -> None:
    joined = batch(Slice(simple(), 3, 5), Slice(simple(4, 105), 0, 2))
    assert len(joined) == 4
    assert list(joined.offsets) == [103, 104, 105, 106]
    assert joined.values == [b"v3", b"v4", b"v0", b"v1"]
    assert joined.keys == [None] * 4
    assert joined.timestamps == [1_000] * 4
    assert joined.headers == [[]] * 4
    assert (joined.first_offset, joined.next_offset) == (103, 107)
    assert [record.offset for record in joined] == [103, 104, 105, 106]
    assert "4 records" in repr(joined)


def test_offsets_without_gaps_are_a_range() -> None:
    assert batch(Slice(simple(), 1, 4)).offsets == range(101, 104)


def test_whole_stored_batch_gives_its_own_column_without_a_copy() -> None:
    one = simple()
    assert batch(Slice(one, 0, 5)).values is one.values


def test_indexing_a_batch_makes_records() -> None:
    joined = batch(Slice(simple(), 3, 5), Slice(simple(4, 105), 0, 2))
    assert [joined[n].offset for n in (0, 1, 2, 3, -1)] == [103, 104, 105, 106, 106]
    with pytest.raises(IndexError):
        joined[4]
    with pytest.raises(IndexError):
        joined[-5]


@pytest.mark.parametrize(
    ("cut", "offsets", "next_offset"),
    [
        (slice(None), [103, 104, 105, 106], 107),
        (slice(2), [103, 104], 105),
        (slice(1, 3), [104, 105], 106),
        (slice(3, None), [106], 107),
        (slice(-1, None), [106], 107),
        (slice(4, 9), [], 107),
        (slice(1, 1), [], 104),
    ],
)
def test_slice_of_a_batch_is_a_batch(cut: slice, offsets: list[int], next_offset: int) -> None:
    part = batch(Slice(simple(), 3, 5), Slice(simple(4, 105), 0, 2))[cut]
    assert [record.offset for record in part] == list(part.offsets) == offsets
    assert part.next_offset == next_offset
    assert part.first_offset == (offsets[0] if offsets else next_offset)


def test_slice_with_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="without a step"):
        batch(Slice(simple(), 0, 5))[::2]


def test_batch_of_records_at_hand() -> None:
    records = list(batch(Slice(simple(), 1, 4)))
    again = Batch.of(records)
    assert again.values == [b"v1", b"v2", b"v3"]
    assert again.next_offset == 104


def test_next_offset_is_behind_removed_records() -> None:
    gaps = stored(Columns(1_000, None, [0, 4], None, [b"a", b"b"], None))
    assert batch(Slice(gaps, 0, 1)).next_offset == 104
    assert batch(Slice(gaps, 0, 2)).next_offset == 105
    assert [gaps.index_of(offset) for offset in (90, 100, 101, 104, 105)] == [0, 0, 1, 1, 2]


def test_commit_of_a_batch_needs_a_group(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match=r"T055: commit\(\) needs a group"):
            await batch(Slice(simple(), 0, 1)).commit()

    run(main)


def test_record_metadata_is_a_frozen_dataclass() -> None:
    written = RecordMetadata("orders", 0, 5, 1_000, 1_003)
    assert dataclasses.asdict(written)["append_time"] == 1_003
    with pytest.raises(dataclasses.FrozenInstanceError):
        written.offset = 6  # type: ignore[misc]
