"""From a key to its partition, by hash range.

Partition i owns a range of xxh3-64(key). Ranges, not a modulus: growing a topic then splits a
range in two and leaves every other key where it is.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from xxhash import xxh3_64_intdigest

HASHES = 1 << 64


def key_hash(key: bytes) -> int:
    """Where ``key`` stands in the hash space, 0 to 2^64 - 1."""
    return xxh3_64_intdigest(key)


def even_ranges(n: int) -> list[tuple[int, int]]:
    """The (first, last) hash, both inclusive, of each partition of a new topic of ``n``.

    Partition i starts at ceil(i * 2^64 / n), so that it owns the hashes h with
    floor(h * n / 2^64) = i.
    """
    assert n >= 1
    starts = [-(-i * HASHES // n) for i in range(n + 1)]
    return [(starts[i], starts[i + 1] - 1) for i in range(n)]


class Router:
    """The partition of each key, where partition i owns the hashes from ``starts[i]`` on.

    Ranges are contiguous and cover everything: each ends where the next larger start begins.
    The starts need not rise with the partition number, as splits add partitions at the end.
    """

    __slots__ = ("_partitions", "_starts")

    def __init__(self, starts: Sequence[int]) -> None:
        order = sorted(range(len(starts)), key=starts.__getitem__)
        self._starts = [starts[i] for i in order]
        self._partitions = order
        assert self._starts[0] == 0, "hashes below the first range would have no partition"
        assert len(set(starts)) == len(starts), "two partitions own the same range"

    def partition(self, key: bytes) -> int:
        """The partition that owns ``key``."""
        return self._partitions[bisect_right(self._starts, xxh3_64_intdigest(key)) - 1]

    def route_many(self, keys: Iterable[bytes]) -> list[int]:
        """``partition`` of each key, in order, at about a third of the cost per key."""
        starts, partitions = self._starts, self._partitions
        return [partitions[bisect_right(starts, h) - 1] for h in map(xxh3_64_intdigest, keys)]
