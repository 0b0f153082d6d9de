"""Columns on their way out: cut into slices that fit into batches."""

from collections.abc import Sequence

from hypothesis import given, strategies as st

from tailrace.client.accumulator import RECORD_OVERHEAD_BYTES
from tailrace.client.outgoing import Outgoing, Slice
from tailrace.protocol.batch import RECORDS_MAX

SIZES = st.one_of(st.integers(0, 50), st.sampled_from([0, 200, 1_000, 5_000]))


def cut(
    values: Sequence[bytes | None], bytes_max: int, places: list[int] | None = None
) -> list[Slice]:
    outgoing = Outgoing(list(values), None, [5] * len(values), None)
    return list(outgoing.cut(range(len(values)) if places is None else places, bytes_max))


@given(sizes=st.lists(SIZES, max_size=300), bytes_max=st.sampled_from([20, 300, 2_000, 100_000]))
def test_slices_hold_every_record_once_in_order_and_fit(sizes: list[int], bytes_max: int) -> None:
    slices = cut([bytes(size) for size in sizes], bytes_max)
    assert [place for one in slices for place in one.places] == list(range(len(sizes)))
    for one in slices:
        assert one.size == sum(sizes[place] + RECORD_OVERHEAD_BYTES for place in one.places)
        assert one.size <= bytes_max or len(one.places) == 1


def test_records_of_one_size_fill_their_slices() -> None:
    slices = cut([bytes(84)] * 105, 1_000)
    assert [len(one.places) for one in slices] == [10] * 10 + [5]


def test_no_slice_holds_more_records_than_a_batch_may() -> None:
    assert [len(one.places) for one in cut([b""] * (RECORDS_MAX + 7), 1 << 20)] == [RECORDS_MAX, 7]


def test_large_records_before_small_ones_are_soon_told_apart() -> None:
    values: list[bytes | None] = [bytes(2_600)] * 100
    slices = cut([*values, *[b"x"] * 10_000], 262_144)
    assert len(slices[0].places) >= 100 // 2
    assert len(slices) <= 4


def test_places_that_are_no_range_are_picked() -> None:
    (one,) = cut([b"a", b"bb", b"ccc", None], 1_000, [0, 2, 3])
    assert (one.places, one.size) == ([0, 2, 3], 4 + 3 * RECORD_OVERHEAD_BYTES)
