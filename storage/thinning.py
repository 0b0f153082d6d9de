"""What is left of one batch: the same batch with fewer records, or several that follow each other.

A batch that lost records takes a list of the offsets that stayed. One that was at the limits may
grow beyond them by that; it is then cut in two, and again if need be. The parts continue each other
as a producer's batches do, in offsets and in sequences, so that whoever replays them (a start that
lost its snapshots) comes to the same end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import sub

from tailrace.protocol.batch import (
    ATTRIBUTE_COMPRESSION,
    ATTRIBUTE_DELETE_HORIZON,
    BatchError,
    BatchHeader,
    Columns,
    encode_entry,
)
from tailrace.storage.producers import SEQUENCES

Part = tuple[BatchHeader, bytes]  # as the header shall be; no bytes for one without records


@dataclass(slots=True)
class Kept:
    """What stays of one batch."""

    keep: Sequence[int]  # indexes into its columns, rising; none: the batch is emptied
    delete_horizon_ms: int | None = None  # set it (KIP-534); None: as it was


def thin(header: BatchHeader, columns: Columns, kept: Kept, *, seed: int) -> list[Part]:
    """The batch with the kept records only, at least one; all its other fields as they were.

    In several parts if it would not fit, each over the offsets behind those of the part before.
    Raises ``BatchError`` if a single record with its key does not fit: none such was ever appended.
    """
    assert kept.keep, "a batch of which nothing stays is emptied"
    return list(_parts(_Batch(header, columns, seed), kept, 0, header.last_offset_delta + 1))


@dataclass(slots=True)
class _Batch:
    """The batch as it was."""

    header: BatchHeader
    columns: Columns
    seed: int

    def delta(self, index: int) -> int:
        """Of a record's offset."""
        offsets = self.columns.offsets
        return index if offsets is None else offsets[index]

    def part(self, records: int, start: int, end: int) -> BatchHeader:
        """Its header over some of its offsets."""
        header = self.header
        sequence = header.base_sequence
        return header._replace(
            base_offset=header.base_offset + start,
            last_offset_delta=end - start - 1,
            base_sequence=(sequence + start) % SEQUENCES if sequence >= 0 else sequence,
            record_count=records,
        )


def _parts(batch: _Batch, kept: Kept, start: int, end: int) -> Iterator[Part]:
    """The kept records, all of which have offset deltas in [start, end)."""
    keep = kept.keep
    header = batch.part(len(keep), start, end)
    if not keep:
        yield header, b""
        return
    try:
        entry = _encode(batch, kept, header, start)
    except BatchError:
        if end - start == 1:
            raise
    else:
        yield header, entry
        return
    cuts: list[tuple[Sequence[int], int, int]]
    if len(keep) > 1:
        middle = len(keep) // 2
        cut = batch.delta(keep[middle])
        cuts = [(keep[:middle], start, cut), (keep[middle:], cut, end)]
    else:  # alone over its own offset it needs no list of offsets
        at = batch.delta(keep[0])
        cuts = [((), start, at), (keep, at, at + 1), ((), at + 1, end)]
    for some, first, following in cuts:
        if first < following:
            yield from _parts(batch, _some_of(kept, batch.columns, some), first, following)


def _some_of(kept: Kept, columns: Columns, keep: Sequence[int]) -> Kept:
    """A part of the kept records; without tombstones it gets no delete horizon."""
    return Kept(keep, kept.delete_horizon_ms if _has_tombstones(columns, keep) else None)


def _has_tombstones(columns: Columns, keep: Sequence[int]) -> bool:
    keys, values = columns.keys or (), columns.values
    return any(values[at] is None and keys and keys[at] is not None for at in keep)


def _encode(batch: _Batch, kept: Kept, header: BatchHeader, start: int) -> bytes:
    """One part. Raises ``BatchError`` if it does not fit."""
    keep, columns = kept.keep, batch.columns
    attributes = header.attributes & ~ATTRIBUTE_COMPRESSION
    times = [0] * len(keep)  # after the old base
    if columns.timestamps is not None:
        times = list(map(columns.timestamps.__getitem__, keep))
    rise = times[0]  # of the base
    if kept.delete_horizon_ms is not None:
        rise = kept.delete_horizon_ms - columns.base_timestamp
        attributes |= ATTRIBUTE_DELETE_HORIZON
    elif attributes & ATTRIBUTE_DELETE_HORIZON:
        if _has_tombstones(columns, keep):
            rise = 0
        else:  # it was for tombstones, and would let every cleaning look for them again
            attributes &= ~ATTRIBUTE_DELETE_HORIZON
    left = Columns(
        base_timestamp=columns.base_timestamp + rise,
        timestamps=list(map(sub, times, repeat(rise))) if rise else times,
        offsets=list(map(sub, map(batch.delta, keep), repeat(start))),
        keys=None if columns.keys is None else list(map(columns.keys.__getitem__, keep)),
        values=list(map(columns.values.__getitem__, keep)),
        headers=None if columns.headers is None else list(map(columns.headers.__getitem__, keep)),
    )
    return encode_entry(
        batch.seed,
        left,
        base_offset=header.base_offset,
        last_offset_delta=header.last_offset_delta,
        leader_epoch=header.leader_epoch,
        append_time=header.append_time,
        attributes=attributes,
        producer_id=header.producer_id,
        producer_epoch=header.producer_epoch,
        base_sequence=header.base_sequence,
        compression=header.compression,
    )
