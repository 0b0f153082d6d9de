"""Which records of a compacted log stay: the newest of each key (S26), in bounded memory. Pure.

A log has a clean part, in which every key stands at most once, and behind it a dirty part. The
dirty part is walked from its newest batch to its oldest: a record whose key was seen already is
superseded. Then the clean part: a record is superseded if its key was seen in the dirty one.

- Keys are known by 128-bit digests under a seed of the run. At most ``keys_max`` of them are held
  at once (and a batch's more): when there are more, the range of digests is halved and the rest
  forgotten; further walks take the rest of the range. What was found superseded stays found.
- What is found is one bit a record in ``Marks``; nothing else of a record is remembered.
- Records without a key are never superseded, nor is anything in a batch that cannot be decoded.
- A tombstone is a record with a key and no value. Its first cleaning writes into its batch until
  when it stays (KIP-534); it goes when that has passed, and only where nothing older of its key
  can be left (S27): below ``whole_below``, everything older was cleaned before or is in this run;
  below ``cleaned_min`` every other replica has done so (R39).

Per batch everything is a handful of calls into C; only what survives is looked at one by one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from typing import cast

from xxhash import xxh3_128_digest

from tailrace.protocol.batch import ATTRIBUTE_DELETE_HORIZON, BatchHeader, Columns
from tailrace.storage.rewrite import Glance, Kept

# A set of so many is just below the size at which it doubles its table: 32 MB and 64 B a digest.
KEYS_PER_PASS_MAX = 1_250_000
DIGEST_BITS = 128
EVERYWHERE = 1 << 62  # an offset: there is no other replica to wait for
FILL = 0.9  # of ``keys_max`` that the next walk aims at

Keys = Sequence[bytes | None]

_TOMBSTONES = 1  # flags of a batch: a record in it has a key and no value
_CLOSED = 2  # its columns are not what they should be: it stays as it is
_ZERO, _ONE = b"01"
_STAYS = bytes.maketrans(b"01", b"\1\0")


def has_marks(header: BatchHeader) -> bool:
    """Whether a batch has records that could be superseded."""
    return header.record_count > 0 and not header.is_control


def marks_bytes(records: int) -> int:
    """How many bytes the marks of a batch with so many records take."""
    return 1 + (records + 7) // 8


class Marks:
    """What is known of batches and records, by the place of each batch's marks.

    A byte of flags, then one bit a record: superseded. Batches stand in the order of the log.
    """

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def add(self, at: int, superseded: bytes) -> int:
        """Mark the records of a batch: an ASCII 1 for each that is superseded, else 0.

        Returns how many of them were not marked before.
        """
        begin, end = at + 1, at + marks_bytes(len(superseded))
        before = int.from_bytes(self.data[begin:end])
        found = before | int(superseded, 2)
        self.data[begin:end] = found.to_bytes(end - begin)
        return found.bit_count() - before.bit_count()

    def flag(self, at: int, flag: int) -> None:
        """Set a flag of a batch."""
        self.data[at] |= flag

    def flags(self, at: int) -> int:
        return self.data[at]

    def superseded(self, at: int, records: int) -> int:
        """How many records of a batch are."""
        return int.from_bytes(self.data[at + 1 : at + marks_bytes(records)]).bit_count()

    def staying(self, at: int, records: int) -> list[int]:
        """The indexes of the records of a batch that are not superseded."""
        bits = int.from_bytes(self.data[at + 1 : at + marks_bytes(records)])
        written = format(bits, f"0{records}b").encode()
        return list(compress(range(records), written.translate(_STAYS)))


@dataclass(frozen=True, slots=True)
class KeyBatch:
    """The keys of one batch, as a walk brings them."""

    segment: int  # number of the segment it stands in
    at: int  # where its marks are
    keys: Keys | None  # None: no record has one, or it could not be decoded
    records: int
    dirty: bool
    tombstones: bool = False  # some record with a key has no value
    closed: bool = False  # it could not be decoded


@dataclass(slots=True)
class SegmentFindings:
    """What the walks found in one segment."""

    superseded: int = 0  # records
    keyless: int = 0  # records
    closed: int = 0  # batches that cannot be decoded
    unstamped: int = 0  # batches with tombstones that may have no delete horizon yet


class Walk:
    """One walk over the log, newest batch first, for the digests in [low, high)."""

    def __init__(self, low: int, high: int, *, seed: int, keys_max: int) -> None:
        assert 0 <= low < high <= 1 << DIGEST_BITS
        assert keys_max > 0
        self.low = low
        self.high = high
        self.seen: set[bytes] = set()
        self._seed = seed
        self._keys_max = keys_max

    def superseded(self, keys: Keys, *, dirty: bool) -> bytes | None:
        """An ASCII 1 for each record that is superseded, 0 for the others; None: none is.

        In this walk's range, that is; of others nothing is said.
        """
        if not dirty and not self.seen:
            return None
        records = len(keys)
        indexes: Sequence[int] = range(records)
        if None in keys:
            indexes = [at for at, key in enumerate(keys) if key is not None]
            keys = [key for key in keys if key is not None]
        digests = list(map(xxh3_128_digest, cast(Sequence[bytes], keys), repeat(self._seed)))
        if self.high - self.low < 1 << DIGEST_BITS:
            low, last = _bytes(self.low), _bytes(self.high - 1)
            within = [low <= digest <= last for digest in digests]
            digests = list(compress(digests, within))
            indexes = list(compress(indexes, within))
        if dirty:
            return self._dirty(digests, indexes, records)
        return self._clean(digests, indexes, records)

    def _dirty(self, digests: list[bytes], indexes: Sequence[int], records: int) -> bytes | None:
        newest = dict(zip(digests, indexes, strict=True))
        fresh = set(newest).difference(self.seen)
        self.seen |= fresh
        if len(self.seen) > self._keys_max:
            self._narrow()
        if len(fresh) == len(digests):
            return None
        if len(indexes) == records:
            found = bytearray(b"1") * records
        else:
            found = bytearray(b"0") * records
            for index in indexes:
                found[index] = _ONE
        for index in map(newest.__getitem__, fresh):
            found[index] = _ZERO
        return bytes(found)

    def _clean(self, digests: list[bytes], indexes: Sequence[int], records: int) -> bytes | None:
        if self.seen.isdisjoint(digests):
            return None
        found = bytearray(b"0") * records
        for index in compress(indexes, map(self.seen.__contains__, digests)):
            found[index] = _ONE
        return bytes(found)

    def _narrow(self) -> None:
        while len(self.seen) > self._keys_max:
            self.high = self.low + (self.high - self.low) // 2
            last = _bytes(self.high - 1)
            self.seen = {digest for digest in self.seen if digest <= last}

    def following(self) -> "Walk | None":
        """The walk for the rest of the digests; None: there is no rest."""
        left = (1 << DIGEST_BITS) - self.high
        if left == 0:
            return None
        width = self.high - self.low
        if self.seen:  # digests are spread evenly: so wide that they just fit
            width = int(width * FILL * self._keys_max / len(self.seen))
        width = min(max(width, 1), left)
        high = self.high + width
        return Walk(self.high, high, seed=self._seed, keys_max=self._keys_max)


def survey(
    newest_first: Callable[[], Iterable[KeyBatch]],
    marks: Marks,
    findings: Sequence[SegmentFindings],
    *,
    seed: int,
    keys_max: int = KEYS_PER_PASS_MAX,
) -> int:
    """Find what is superseded, in as many walks as it takes; how many they were.

    ``newest_first`` gives every batch that has marks, dirty ones first, as often as it is called.
    What is found is left in ``marks`` and, for each segment, in ``findings``.
    """
    walk: Walk | None = Walk(0, 1 << DIGEST_BITS, seed=seed, keys_max=keys_max)
    walks = 0
    while walk is not None:
        walks += 1
        for batch in newest_first():
            if walks == 1:
                _note(marks, findings[batch.segment], batch)
            if batch.keys is None:
                continue
            found = walk.superseded(batch.keys, dirty=batch.dirty)
            if found is not None:
                findings[batch.segment].superseded += marks.add(batch.at, found)
        walk = walk.following()
    return walks


def _note(marks: Marks, findings: SegmentFindings, batch: KeyBatch) -> None:
    if batch.closed:
        marks.flag(batch.at, _CLOSED)
        findings.closed += 1
    elif batch.keys is None:
        findings.keyless += batch.records
    else:
        findings.keyless += batch.keys.count(None)
    if batch.tombstones:
        marks.flag(batch.at, _TOMBSTONES)
        findings.unstamped += batch.dirty


class Cleaning:
    """The verdict over one stretch of the log, once it was surveyed (``rewrite.Verdict``).

    ``glance`` is to be asked for every batch of the stretch, in order, and the verdict itself for
    those it says to open. ``now_ms`` must not follow a jump of the wall clock.
    """

    def __init__(
        self,
        marks: Marks,
        *,
        now_ms: int,
        tombstone_retention_ms: int,
        whole_below: int,
        cleaned_min: int = EVERYWHERE,
    ) -> None:
        self.next_horizon_ms: int | None = None  # of the tombstones that stay, the first
        self.waits = False  # some that could go wait for other replicas
        self.tombstones_removed = 0
        self._marks = marks
        self._now_ms = now_ms
        self._new_horizon_ms = now_ms + tombstone_retention_ms
        self._whole_below = whole_below
        self._cleaned_min = cleaned_min
        self._at = 0  # where the marks of the next batch are
        self._opened = 0  # where those of the batch to be opened are

    def glance(self, header: BatchHeader) -> Glance:
        """Whether a batch stays or goes whole, or must be opened."""
        if not has_marks(header):
            return "keep"
        at, records = self._at, header.record_count
        self._at += marks_bytes(records)
        self._opened = at
        flags = self._marks.flags(at)
        if flags & _CLOSED:
            return "keep"
        superseded = self._marks.superseded(at, records)
        if superseded == records:
            return "drop"
        if header.attributes & ATTRIBUTE_DELETE_HORIZON:
            if self._passed(header):
                return "open"
            if not superseded:
                self._outstanding(header.base_timestamp, header)
        elif flags & _TOMBSTONES:
            return "open"
        return "open" if superseded else "keep"

    def __call__(
        self, header: BatchHeader, columns: Columns, offsets: Sequence[int]
    ) -> Kept | None:
        keep = self._marks.staying(self._opened, header.record_count)
        horizon_ms: int | None = None
        gone = tombstones(columns, keep)
        if gone:
            if self._passed(header):
                self.tombstones_removed += len(gone)
                keep = [index for index in keep if index not in gone]
            elif header.attributes & ATTRIBUTE_DELETE_HORIZON:
                self._outstanding(header.base_timestamp, header)
            else:
                horizon_ms = self._new_horizon_ms
                self._outstanding(horizon_ms, header)
        if horizon_ms is None and len(keep) == header.record_count:
            return None
        return Kept(keep, horizon_ms)

    @property
    def marks_end(self) -> int:
        """Behind the marks of the last batch that was asked for."""
        return self._at

    def _passed(self, header: BatchHeader) -> bool:
        """Whether the tombstones of a batch may go (S27)."""
        return (
            bool(header.attributes & ATTRIBUTE_DELETE_HORIZON)
            and header.base_timestamp < self._now_ms
            and header.next_offset <= min(self._whole_below, self._cleaned_min)
        )

    def _outstanding(self, horizon_ms: int, header: BatchHeader) -> None:
        if horizon_ms >= self._now_ms:
            self.next_horizon_ms = min(horizon_ms, self.next_horizon_ms or horizon_ms)
        elif header.next_offset <= self._whole_below:
            self.waits = True
        # Else it passed but has to stay: nothing to wait for, another run will not move it.


def tombstones(columns: Columns, keep: Sequence[int]) -> set[int]:
    """Which of these records have a key and no value."""
    if columns.keys is None or None not in columns.values:
        return set()
    keys, values = columns.keys, columns.values
    return {index for index in keep if values[index] is None and keys[index] is not None}


def _bytes(digest: int) -> bytes:
    return digest.to_bytes(DIGEST_BITS // 8)
