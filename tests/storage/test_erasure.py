"""What an erasure takes of a batch, and what it counts."""

from hypothesis import given, strategies as st

from tailrace.protocol.batch import (
    BatchHeader,
    Columns,
    decode_columns,
    encode_entry,
    header_seed,
    parse_header,
)
from tailrace.storage.erasure import Selection, Target, digest_of
from tailrace.storage.rewrite import Kept, offsets_of

SEED = header_seed(bytes(16), 0)
A, B, C = b"cust-a", b"cust-b", b""


def batch(
    keys: list[bytes | None] | None, base: int = 100, offsets: list[int] | None = None
) -> tuple[BatchHeader, Columns, list[int]]:
    """A stored batch of as many records as there are keys (three where there are none)."""
    values: list[bytes | None] = [b"v"] * (3 if keys is None else len(keys))
    entry = encode_entry(
        SEED,
        Columns(0, None, offsets, keys, values, None),
        base_offset=base,
        leader_epoch=1,
        append_time=1,
    )
    header = parse_header(entry)
    columns = decode_columns(entry, header)
    return header, columns, list(offsets_of(header, columns))


def target(
    *keys: bytes, offsets: tuple[int, ...] = (), end: int = 1_000, counted_to: int = 0
) -> Target:
    return Target(tuple(map(digest_of, keys)), offsets, end, counted_to)


def judge(selection: Selection, found: tuple[BatchHeader, Columns, list[int]]) -> list[int] | None:
    """Offsets that stay, or None: all of them."""
    header, columns, offsets = found
    seen = selection.glance(header)
    if seen != "open":
        return None if seen == "keep" else []
    kept = selection(header, columns, offsets)
    assert kept is None or isinstance(kept, Kept)
    return None if kept is None else [offsets[index] for index in kept.keep]


def test_every_record_of_a_key_goes() -> None:
    selection = Selection([target(A)], start=0)
    assert judge(selection, batch([A, B, None, A])) == [101, 102]
    assert selection.counts == [2]


def test_a_batch_that_holds_nothing_stays_byte_for_byte() -> None:
    selection = Selection([target(A)], start=0)
    assert judge(selection, batch([B, None, C])) is None
    assert judge(selection, batch(None)) is None
    assert selection.counts == [0]


def test_an_empty_key_is_a_key_and_no_key_is_none() -> None:
    selection = Selection([target(C)], start=0)
    assert judge(selection, batch([None, C, A])) == [100, 102]


def test_what_was_appended_since_the_request_stays() -> None:
    selection = Selection([target(A, end=102)], start=0)
    assert judge(selection, batch([A, A, A, A])) == [102, 103]
    assert selection.glance(batch([A], base=102)[0]) == "keep"


def test_single_records_go_and_their_neighbours_stay() -> None:
    selection = Selection([target(offsets=(101, 104))], start=0)
    assert judge(selection, batch([A, A], offsets=[1, 4], base=100)) == []
    assert judge(selection, batch([A, A, B, B, B, B])) == [100, 102, 103, 105]


def test_an_offset_that_is_a_gap_takes_nothing() -> None:
    selection = Selection([target(offsets=(101,))], start=0)
    assert judge(selection, batch([A, B], offsets=[0, 2])) is None
    assert selection.counts == [0]


def test_batches_without_single_records_are_not_opened() -> None:
    selection = Selection([target(offsets=(99, 104))], start=0)
    assert selection.glance(batch(None)[0]) == "keep"
    assert selection.glance(batch(None, base=97)[0]) == "open"
    assert selection.glance(batch(None, base=104)[0]) == "open"
    assert selection.glance(batch(None, base=105)[0]) == "keep"


def test_erasures_share_a_pass_and_each_counts_its_own() -> None:
    both = [target(A, offsets=(101,)), target(A, B, end=102), target(offsets=(100, 103))]
    selection = Selection(both, start=0)
    assert judge(selection, batch([A, B, B, C])) == [102]
    assert selection.counts == [2, 2, 2]


def test_a_record_asked_for_twice_by_one_request_is_counted_once() -> None:
    selection = Selection([target(A, offsets=(100,))], start=0)
    assert judge(selection, batch([A, B])) == [101]
    assert selection.counts == [1]


def test_what_an_earlier_pass_counted_goes_uncounted() -> None:
    selection = Selection([target(A, counted_to=102)], start=0)
    assert judge(selection, batch([A, A, A])) == []
    assert selection.counts == [1]


def test_what_lies_below_the_log_start_goes_uncounted() -> None:
    selection = Selection([target(A)], start=102)
    assert judge(selection, batch([A, B, B, A])) == [102]
    assert selection.counts == [1]
    assert selection.glance(batch([A, A], base=100)[0]) == "drop"


keys = st.sampled_from([None, A, B, C])
targets = st.builds(
    Target,
    st.lists(st.sampled_from([A, B, C]), unique=True).map(lambda ks: tuple(map(digest_of, ks))),
    st.lists(st.integers(90, 115), unique=True).map(lambda found: tuple(sorted(found))),
    st.integers(90, 115),
    st.integers(90, 115),
)


@given(st.lists(keys, min_size=1, max_size=12), st.lists(targets, max_size=3), st.integers(0, 112))
def test_like_a_look_at_every_record(
    found: list[bytes | None], wanted: list[Target], start: int
) -> None:
    wanted = [
        Target(t.keys, tuple(o for o in t.offsets if o < t.end), t.end, t.counted_to)
        for t in wanted
    ]

    def takes(one: Target, offset: int, key: bytes | None) -> bool:
        by_key = key is not None and digest_of(key) in one.keys
        return offset < one.end and (by_key or offset in one.offsets)

    records = list(zip(range(100, 100 + len(found)), found, strict=True))
    stay = [o for o, k in records if o >= start and not any(takes(t, o, k) for t in wanted)]
    counts = [
        sum(o >= max(start, t.counted_to) and takes(t, o, k) for o, k in records) for t in wanted
    ]
    selection = Selection(wanted, start=start)
    kept = judge(selection, batch(found))
    assert (kept if kept is not None else [o for o, _ in records]) == stay
    assert selection.counts == counts
