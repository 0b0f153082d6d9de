"""Rebuilding from the batches of a log what is remembered beside it: producers and epochs.

Looks at fields of the header only, in one step per batch; the batches were verified before.
"""

import struct
from collections.abc import Sequence

from tailrace.storage.epochs import EpochHistory
from tailrace.storage.producers import SEQUENCES, ProducerTable, Sent
from tailrace.storage.segment import Quarantine, Segment

_FIELDS_AT = 16
# append time, base offset, batch length, leader epoch, …, last offset delta, …, producer's three
_FIELDS = struct.Struct(">qqii7xi16xqhi")


def replay(
    segment: Segment,
    holes: Sequence[Quarantine],
    *,
    producers: ProducerTable,
    producers_from: int,
    epochs: EpochHistory,
    epochs_from: int,
) -> None:
    """Take in a segment's batches, each table those from its own offset on."""
    near = segment.index.at_offset(min(producers_from, epochs_from))
    position = near.position if near is not None else 0
    skips = {h.position: h.end for h in holes if h.file == segment.path and h.end > h.position}
    view = segment.file.view(0, segment.size_bytes)
    while position < segment.size_bytes:
        if position in skips:
            position = skips[position]
            continue
        time, base, length, leader_epoch, delta, producer_id, producer_epoch, sequence = (
            _FIELDS.unpack_from(view, position + _FIELDS_AT)
        )
        position += 36 + length
        if leader_epoch > epochs.latest and base >= epochs_from:
            epochs.begin(leader_epoch, base)
        if producer_id >= 0 and sequence >= 0 and base >= producers_from:
            last = (sequence + delta) % SEQUENCES
            sent = Sent(sequence, last, base, base + delta + 1, time)
            producers.replay(producer_id, producer_epoch, sent)
