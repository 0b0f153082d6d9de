"""How far a compacted log was cleaned: one small file beside its segments, replaced atomically.

It may lag (then more is cleaned again than need be) and may be lost (then all is); it never says
too much: it is written when the cleaned segments are in their places, durably.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from tailrace.storage import checkpoint
from tailrace.storage.disk import Disk
from tailrace.storage.epochs import EpochHistory, EpochStart

_BODY = struct.Struct(">qqqqi?")
_NEVER = -1


class Cleaned(NamedTuple):
    """Offsets are those at which segments begin or end."""

    below: int = 0  # no key stands twice below it, but in segments that were left out
    whole_below: int = 0  # below it none was left out
    next_horizon_ms: int | None = None  # the first time at which tombstones may go
    ended_at: int | None = None  # when the last run ended well, ms since the epoch
    epoch: int = -1  # the log's latest when this was written: what holds only as far as that goes
    waits: bool = False  # tombstones whose time has passed wait for other replicas (S27)


def path_in(directory: str) -> str:
    return f"{directory}/cleaned"


def write(disk: Disk, directory: str, cleaned: Cleaned) -> None:
    """Durable on return. On an ``OSError`` the old file is still there. BrokerError T093."""
    horizon_ms = _NEVER if cleaned.next_horizon_ms is None else cleaned.next_horizon_ms
    ended_at = _NEVER if cleaned.ended_at is None else cleaned.ended_at
    body = _BODY.pack(
        *(cleaned.below, cleaned.whole_below, horizon_ms, ended_at, cleaned.epoch, cleaned.waits)
    )
    data = checkpoint.encode(checkpoint.Kind.CLEANED, body)
    checkpoint.replace(disk, path_in(directory), data)


def read(disk: Disk, directory: str, end: int, epochs: Sequence[EpochStart]) -> Cleaned:
    """What is known of a log that ended at ``end`` when it was opened.

    Nothing if the file is missing, damaged, or of a log that was longer, or went on otherwise in
    that epoch: then records below may have been written since. Raises ``OSError``.
    """
    body = checkpoint.read(disk, path_in(directory), checkpoint.Kind.CLEANED)
    if body is None or len(body) != _BODY.size:
        return Cleaned()
    below, whole_below, horizon_ms, ended_at, epoch, waits = _BODY.unpack(body)
    _, same_up_to = EpochHistory(epochs).end_of(epoch, end)
    if not 0 <= whole_below <= below <= same_up_to:
        return Cleaned()
    return Cleaned(
        below,
        whole_below,
        None if horizon_ms == _NEVER else horizon_ms,
        None if ended_at == _NEVER else ended_at,
        epoch,
        waits,
    )
