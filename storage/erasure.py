"""Which records of a partition erasures take: the verdict over one batch (pure).

- A key is known by its digests alone, so that what is kept of a request for the time it takes
  holds no key. Its xxh3-64 (which routes it, too) is asked first, for all records of a batch at
  once; only what it finds is compared by SHA-256.
- An erasure takes what stood below the log end when it was asked for (``Target.end``); what was
  appended since stays, also under the same key.
- What is found is counted once per erasure, though a crash may let it be looked for twice: below
  ``Target.counted_to`` everything was counted before.
- What lies below the log start leaves with the same pass: ``delete_records`` may have set it into
  the middle of a segment.

Control batches hold no user's bytes and stay.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from xxhash import xxh3_64_intdigest

from tailrace.protocol.batch import BatchHeader, Columns
from tailrace.storage.rewrite import Glance, Kept


@dataclass(frozen=True, slots=True)
class KeyDigest:
    """One key, as far as it is remembered."""

    hash64: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Target:
    """What one erasure wants of one partition."""

    keys: tuple[KeyDigest, ...]
    offsets: tuple[int, ...]  # single records, rising, all below ``end``
    end: int  # the log end when it was asked for
    counted_to: int  # records below were counted by an earlier pass


def digest_of(key: bytes) -> KeyDigest:
    """The digests of a key."""
    return KeyDigest(xxh3_64_intdigest(key), sha256(key).digest())


class Selection:
    """What some erasures of one partition take together: a verdict of ``storage.rewrite``.

    ``counts`` tells for each target how many of its records were found that none had counted.
    """

    def __init__(self, targets: Sequence[Target], *, start: int) -> None:
        self.counts = [0] * len(targets)
        self._targets = targets
        self._singles = [frozenset(one.offsets) for one in targets]
        self._start = start
        self._key_end = max((one.end for one in targets if one.keys), default=0)
        self._hashes = {key.hash64 for one in targets for key in one.keys}
        self._by_key: dict[bytes, list[int]] = {}
        for number, target in enumerate(targets):
            for key in target.keys:
                self._by_key.setdefault(key.sha256, []).append(number)
        self._offsets = sorted({offset for one in targets for offset in one.offsets})

    def glance(self, header: BatchHeader) -> Glance:
        """What the header alone tells: most batches need not be opened for single records."""
        base = header.base_offset
        if header.next_offset <= self._start:
            return "drop"
        if base < self._start or base < self._key_end:
            return "open"
        at = bisect_left(self._offsets, base)
        holds = at < len(self._offsets) and self._offsets[at] <= header.last_offset
        return "open" if holds else "keep"

    def __call__(
        self, header: BatchHeader, columns: Columns, offsets: Sequence[int], /
    ) -> Kept | None:
        """What stays of a batch; counts what goes."""
        taken = self.find(columns, offsets)
        if not taken:
            return None
        return Kept([index for index in range(len(offsets)) if index not in taken])

    def find(self, columns: Columns, offsets: Sequence[int]) -> set[int]:
        """Indexes of the records that go; counts them. ``offsets``: the records' own, rising."""
        taken = set(range(bisect_left(offsets, self._start)))
        for index in self._single(offsets):
            taken.add(index)
            for number, singles in enumerate(self._singles):
                if offsets[index] in singles:
                    self._count(number, offsets[index])
        if columns.keys is None or offsets[0] >= self._key_end:
            return taken
        for index, numbers in self._keyed(columns.keys):
            for number in numbers:
                offset = offsets[index]
                if offset < self._targets[number].end:
                    taken.add(index)
                    if offset not in self._singles[number]:
                        self._count(number, offset)
        return taken

    def _count(self, number: int, offset: int) -> None:
        if offset >= max(self._targets[number].counted_to, self._start):
            self.counts[number] += 1

    def _single(self, offsets: Sequence[int]) -> Iterable[int]:
        """Indexes of the single records asked for that are in the batch."""
        first = bisect_left(self._offsets, offsets[0])
        for offset in self._offsets[first : bisect_left(self._offsets, offsets[-1] + 1)]:
            index = bisect_left(offsets, offset)
            if offsets[index] == offset:
                yield index

    def _keyed(self, keys: Sequence[bytes | None]) -> Iterable[tuple[int, Sequence[int]]]:
        """Indexes of the records whose key some targets want, and which targets those are."""
        present = keys if None not in keys else [key for key in keys if key is not None]
        hashes: Iterable[int] = map(xxh3_64_intdigest, present)  # type: ignore[arg-type]
        if self._hashes.isdisjoint(hashes):
            return
        for index, key in enumerate(keys):
            if key is not None and xxh3_64_intdigest(key) in self._hashes:
                numbers = self._by_key.get(sha256(key).digest())
                if numbers is not None:
                    yield index, numbers
