"""Routing: every key has one partition, and splits move only what they must."""

from hypothesis import given, strategies as st

from tailrace.protocol.routing import HASHES, Router, even_ranges, key_hash

keys = st.lists(st.binary(max_size=20), max_size=50)
counts = st.integers(1, 1_000)


def even(n: int) -> Router:
    return Router([first for first, _ in even_ranges(n)])


def test_the_hash_is_xxh3_64() -> None:
    # From the reference implementation, seed 0.
    assert key_hash(b"") == 0x2D06800538D394C2
    assert key_hash(b"a") == 0xE6C632B61E964E1F


@given(counts)
def test_even_ranges_cover_every_hash_once_and_differ_by_one_at_most(n: int) -> None:
    ranges = even_ranges(n)
    assert len(ranges) == n
    assert ranges[0][0] == 0
    assert ranges[-1][1] == HASHES - 1
    assert all(ranges[i][1] + 1 == ranges[i + 1][0] for i in range(n - 1))
    sizes = {last - first for first, last in ranges}
    assert max(sizes) - min(sizes) <= 1


@given(counts, keys)
def test_keys_go_to_the_range_that_holds_their_hash(n: int, some: list[bytes]) -> None:
    router, ranges = even(n), even_ranges(n)
    for key in some:
        partition = router.partition(key)
        first, last = ranges[partition]
        assert first <= key_hash(key) <= last
        assert partition == key_hash(key) * n // HASHES
    assert router.route_many(some) == [router.partition(key) for key in some]


@given(counts, keys, st.data())
def test_a_split_moves_keys_of_one_partition_to_the_new_one_only(
    n: int, some: list[bytes], data: st.DataObject
) -> None:
    ranges = even_ranges(n)
    split = data.draw(st.integers(0, n - 1))
    first, last = ranges[split]
    before = even(n)
    after = Router([*(start for start, _ in ranges), (first + last) // 2 + 1])
    for key in some:
        old, new = before.partition(key), after.partition(key)
        assert new == old or (old, new) == (split, n)


def test_the_borders_belong_to_the_range_that_begins_there() -> None:
    a, b = sorted((b"a", b"b"), key=key_hash)
    router = Router([0, key_hash(b)])
    assert (router.partition(a), router.partition(b)) == (0, 1)
    assert Router([key_hash(b), 0]).partition(b) == 0
    assert Router([0, key_hash(b) + 1]).partition(b) == 0
