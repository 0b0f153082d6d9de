"""Rewriting segments: what stays, what becomes an empty range, what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest, xxh32_intdigest

from tailrace.protocol.batch import (
    BatchError,
    BatchHeader,
    Columns,
    Compression,
    decode_columns,
    encode_entry,
    parse_header,
)
from tailrace.protocol.batch_header import (
    ATTRIBUTE_CONTROL,
    ATTRIBUTE_DELETE_HORIZON,
    ATTRIBUTE_TRANSACTIONAL,
)
from tailrace.storage.index import Index
from tailrace.storage.rewrite import (
    FromOffset,
    Glance,
    Kept,
    RewriteRefused,
    Rewritten,
    SegmentSource,
    empty_batch,
    rewrite,
)
from tailrace.storage.swap import SwapName
from tailrace.storage.thinning import thin
from tests.storage.logs import SEED, QuickDisk


def columns(*offsets: int, time: int = 500) -> Columns:
    """One record per offset delta, key and value made of it, one more ms each."""
    deltas = list(offsets)
    return Columns(
        base_timestamp=time,
        timestamps=list(range(len(deltas))),
        offsets=deltas,
        keys=[b"k%d" % at for at in deltas],
        values=[b"v%d" % at for at in deltas],
        headers=[[("h", b"%d" % at)] for at in deltas],
    )


def entry(
    base: int,
    count: int = 2,
    *,
    epoch: int = 1,
    time: int = 1000,
    attributes: int = 0,
    compression: Compression = "none",
) -> bytes:
    return encode_entry(
        SEED,
        columns(*range(count)),
        base_offset=base,
        leader_epoch=epoch,
        append_time=time,
        attributes=attributes,
        producer_id=7,
        producer_epoch=1,
        base_sequence=base,
        compression=compression,
    )


def chain(count: int, each: int = 2) -> list[bytes]:
    """Neighbouring batches from offset 0 on."""
    return [entry(at * each, each, time=1000 + at) for at in range(count)]


def segment(path: Path, *batches: bytes) -> SegmentSource:
    """A segment file of these batches, with zeros behind them as in any log."""
    headers = [parse_header(data) for data in batches]
    base, size = headers[0].base_offset, sum(map(len, batches))
    file = path / f"{base:020}.log"
    file.write_bytes(b"".join(batches) + bytes(100))
    return SegmentSource(str(file), base, headers[-1].next_offset, size)


class Without:
    """The verdict that these offsets go."""

    def __init__(self, *gone: int, horizon: int | None = None) -> None:
        self.gone = set(gone)
        self.horizon = horizon
        self.asked: list[int] = []

    def __call__(
        self, header: BatchHeader, columns: Columns, offsets: Sequence[int]
    ) -> Kept | None:
        self.asked.append(header.base_offset)
        keep = [at for at, offset in enumerate(offsets) if offset not in self.gone]
        return Kept(keep, self.horizon)


def run(path: Path, sources: Sequence[SegmentSource], verdict: Without) -> Rewritten:
    return rewrite(
        QuickDisk(), str(path), sources, SEED, verdict, index_interval=1, pace=lambda _: None
    )


def written(path: Path, result: Rewritten) -> list[tuple[BatchHeader, bytes]]:
    """The batches of the new file."""
    file = Path(SwapName(result.base_offset, result.next_offset).half_made(str(path)))
    data, found, position = file.read_bytes(), list[tuple[BatchHeader, bytes]](), 0
    while position < len(data):
        header = parse_header(data, position)
        found.append((header, data[position : position + header.size_bytes]))
        position += header.size_bytes
    assert result.summary.size_bytes == len(data)
    assert result.summary.batches == len(found)
    index = Index(result.base_offset, memoryview(result.index))
    assert [one.offset for one in index] == [header.base_offset for header, _ in found]
    return found


def offsets(header: BatchHeader, data: bytes) -> list[int]:
    deltas = decode_columns(data, header).offsets
    return [
        header.base_offset + at for at in (range(header.record_count) if deltas is None else deltas)
    ]


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def test_kept_records_are_what_they_were_at_the_offsets_they_had(tmp_path: Path) -> None:
    before = entry(0, 5, compression="lz4", attributes=ATTRIBUTE_TRANSACTIONAL)
    result = run(tmp_path, [segment(tmp_path, before)], Without(0, 3))
    [(header, data)] = written(tmp_path, result)
    old = parse_header(before)
    changed = {"header_check", "payload_checksum", "batch_length", "record_count"}
    changed |= {"base_timestamp", "max_timestamp", "attributes"}
    assert old._replace(**{name: getattr(header, name) for name in changed}) == header
    assert header.is_transactional
    assert decode_columns(data, header) == Columns(
        501,
        [0, 1, 3],
        [1, 2, 4],
        [b"k1", b"k2", b"k4"],
        [b"v1", b"v2", b"v4"],
        [[("h", b"1")], [("h", b"2")], [("h", b"4")]],
    )
    assert (result.records_kept, result.records_dropped, result.changed) == (3, 2, True)
    assert (header.base_timestamp, header.max_timestamp) == (501, 504)


def test_a_batch_may_be_thinned_again(tmp_path: Path) -> None:
    [(_, once)] = thin(parse_header(entry(10, 5)), columns(*range(5)), Kept([1, 2, 4]), seed=SEED)
    result = run(tmp_path, [segment(tmp_path, once)], Without(12))
    [(header, data)] = written(tmp_path, result)
    assert offsets(header, data) == [11, 14]
    assert header.next_offset == 15


def test_a_run_of_emptied_batches_becomes_one(tmp_path: Path) -> None:
    result = run(tmp_path, [segment(tmp_path, *chain(5))], Without(*range(2, 8)))
    (first, _), (empty, data), (last, _) = written(tmp_path, result)
    assert (first.base_offset, empty.base_offset, last.base_offset) == (0, 2, 8)
    assert (empty.next_offset, empty.record_count) == (8, 0)
    assert (empty.append_time, empty.leader_epoch, empty.producer_id) == (1003, 1, -1)
    assert decode_columns(data, empty).values == []
    assert (result.records_kept, result.records_dropped) == (4, 6)


def test_a_run_ends_where_a_leader_epoch_begins(tmp_path: Path) -> None:
    batches = [entry(0, epoch=1), entry(2, epoch=1), entry(4, epoch=2), entry(6, epoch=2)]
    result = run(tmp_path, [segment(tmp_path, *batches)], Without(*range(8)))
    found = written(tmp_path, result)
    assert [(h.base_offset, h.next_offset, h.leader_epoch) for h, _ in found] == [
        (0, 4, 1),
        (4, 8, 2),
    ]


def test_neighbours_become_one_segment_and_their_empty_ranges_one_batch(tmp_path: Path) -> None:
    first = segment(tmp_path, entry(0), empty_batch(SEED, 2, 10, 1, 1001))
    second = segment(tmp_path, empty_batch(SEED, 10, 20, 1, 1002), entry(20, time=1003))
    result = run(tmp_path, [first, second], Without())
    assert result.changed
    found = written(tmp_path, result)
    assert [(h.base_offset, h.next_offset) for h, _ in found] == [(0, 2), (2, 20), (20, 22)]
    assert result.summary.first_append_time == 1000
    assert result.summary.last_append_time == 1003
    assert (result.base_offset, result.next_offset) == (0, 22)


def test_a_segment_that_loses_nothing_is_only_read(tmp_path: Path) -> None:
    source = segment(tmp_path, *chain(3), empty_batch(SEED, 6, 9, 1, 2000))
    result = run(tmp_path, [source], Without(100))
    assert (result.changed, result.written_bytes, result.records_kept) == (False, 0, 6)
    assert names(tmp_path) == [f"{0:020}.log"]


def test_what_comes_before_the_first_loss_is_copied_byte_for_byte(tmp_path: Path) -> None:
    batches = chain(6)
    result = run(tmp_path, [segment(tmp_path, *batches)], Without(8))
    found = written(tmp_path, result)
    assert [data for _, data in found[:4]] == batches[:4]
    assert found[5][1] == batches[5]
    assert result.written_bytes == result.summary.size_bytes


def test_control_batches_are_never_touched(tmp_path: Path) -> None:
    marker = encode_entry(
        SEED,
        Columns(1, None, None, [b"\0\0\0\1"], [b"\0\0\0\0\0\0"], None),
        base_offset=2,
        leader_epoch=1,
        append_time=1000,
        attributes=ATTRIBUTE_CONTROL | ATTRIBUTE_TRANSACTIONAL,
        producer_id=7,
        producer_epoch=1,
    )
    verdict = Without(*range(10))
    result = run(tmp_path, [segment(tmp_path, entry(0), marker, entry(3))], verdict)
    assert written(tmp_path, result)[1][1] == marker
    assert verdict.asked == [0, 3]


def test_a_delete_horizon_changes_no_timestamp_and_stays_with_its_tombstones(
    tmp_path: Path,
) -> None:
    with_tombstone = replace(columns(0, 1, 2), values=[b"v0", b"v1", None])
    source = segment(
        tmp_path,
        encode_entry(SEED, with_tombstone, base_offset=0, leader_epoch=1, append_time=1_000),
    )
    [(header, data)] = written(tmp_path, run(tmp_path, [source], Without(horizon=9_000)))
    assert header.attributes & ATTRIBUTE_DELETE_HORIZON
    assert (header.base_timestamp, header.max_timestamp) == (9_000, 502)
    (tmp_path / "again").mkdir()
    result = run(tmp_path / "again", [segment(tmp_path / "again", data)], Without(0))
    [(header, data)] = written(tmp_path / "again", result)
    assert (header.base_timestamp, header.max_timestamp) == (9_000, 502)
    left = decode_columns(data, header)
    assert left.timestamps == [501 - 9_000, 502 - 9_000]
    same = run(tmp_path / "again", [segment(tmp_path / "again", data)], Without(horizon=9_000))
    assert not same.changed
    result = run(tmp_path / "again", [segment(tmp_path / "again", data)], Without(2))
    [(header, data)] = written(tmp_path / "again", result)
    assert not header.attributes & ATTRIBUTE_DELETE_HORIZON
    assert (header.base_timestamp, header.max_timestamp) == (501, 501)


def test_records_below_a_start_go_without_opening_other_batches(tmp_path: Path) -> None:
    verdict = FromOffset(5)
    seen: list[Glance] = []

    def glance(header: BatchHeader) -> Glance:
        seen.append(verdict.glance(header))
        return seen[-1]

    result = rewrite(
        QuickDisk(),
        str(tmp_path),
        [segment(tmp_path, *chain(4))],
        SEED,
        verdict,
        index_interval=1,
        pace=lambda _: None,
        glance=glance,
    )
    assert seen == ["drop", "drop", "open", "keep"]
    assert [offsets(h, data) for h, data in written(tmp_path, result)] == [[], [5], [6, 7]]


@pytest.mark.parametrize("at", [3, 20, 60, 90])
def test_any_flipped_bit_is_refused_and_nothing_is_left(tmp_path: Path, at: int) -> None:
    batches = chain(3)
    source = segment(tmp_path, *batches)
    file = Path(source.path)
    data = bytearray(file.read_bytes())
    data[len(batches[0]) + at] ^= 4
    file.write_bytes(data)
    with pytest.raises(RewriteRefused) as refused:
        run(tmp_path, [source], Without(0))
    assert (refused.value.file, refused.value.position) == (source.path, len(batches[0]))
    assert names(tmp_path) == [file.name]
    assert file.read_bytes() == data


def test_a_batch_that_does_not_continue_the_segment_is_refused(tmp_path: Path) -> None:
    wrong: list[list[bytes]] = [
        [entry(0), entry(3)],
        [entry(0, epoch=2), entry(2, epoch=1)],
        [entry(0, time=5), entry(2, time=4)],
    ]
    for number, batches in enumerate(wrong):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(RewriteRefused):
            run(folder, [segment(folder, *batches)], Without(0))


def test_columns_that_belie_their_header_are_refused(tmp_path: Path) -> None:
    sound = bytearray(entry(0, 2))
    sound[84] = 1  # the record count; sealed again below
    fields = parse_header(bytes(sound))
    data = _resealed(bytes(sound))
    with pytest.raises(BatchError):
        decode_columns(data, fields)
    with pytest.raises(RewriteRefused, match="for 1 records"):
        run(tmp_path, [segment(tmp_path, data)], Without(0))


def test_an_error_half_way_leaves_no_file(tmp_path: Path) -> None:
    def give_up(_: int) -> None:
        raise InterruptedError

    source = segment(tmp_path, *chain(3))
    with pytest.raises(InterruptedError):
        rewrite(
            QuickDisk(), str(tmp_path), [source], SEED, Without(0), index_interval=1, pace=give_up
        )
    assert names(tmp_path) == [f"{0:020}.log"]


def _resealed(data: bytes) -> bytes:
    """The entry with both checks made true for what it now says."""
    whole = bytearray(data)
    whole[8:16] = xxh3_64_intdigest(whole[45:]).to_bytes(8)
    whole[:4] = xxh32_intdigest(whole[4:45], SEED).to_bytes(4)
    return bytes(whole)
