"""The sparse index answers as a linear scan would."""

from hypothesis import given, strategies as st

from tailrace.storage.index import Index, Summary, decode_index, encode_index

STEPS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 3)), max_size=40)


def made(steps: list[tuple[int, int, int]]) -> Index:
    index, offset, position, time = Index(100), 100, 0, 7
    for records, size, later in steps:
        index.add(offset, position, time)
        offset, position, time = offset + records, position + size, time + later
    return index


@given(steps=STEPS, asked=st.integers(90, 320))
def test_look_ups_equal_a_linear_scan(steps: list[tuple[int, int, int]], asked: int) -> None:
    index = made(steps)
    rows = list(index)
    assert index.at_offset(asked) == max((r for r in rows if r.offset <= asked), default=None)
    assert index.at_position(asked) == max((r for r in rows if r.position <= asked), default=None)
    assert index.before_time(asked) == max((r for r in rows if r.append_time < asked), default=None)


@given(steps=STEPS, position=st.integers(0, 300))
def test_truncation_keeps_what_lies_before(
    steps: list[tuple[int, int, int]], position: int
) -> None:
    index = made(steps)
    before = list(index)
    index.truncate(position)
    assert list(index) == [row for row in before if row.position < position]
    index.add(1000, 1000, 1000)


@given(steps=STEPS)
def test_file_round_trip(steps: list[tuple[int, int, int]]) -> None:
    index = made(steps)
    summary = Summary(100, 400, 1234, 7, 99, 40, 300)
    found = decode_index(encode_index(summary, index), 100)
    assert found is not None
    assert (found[0], list(found[1])) == (summary, list(index))


def test_index_of_another_segment_or_with_a_flipped_bit_is_not_believed() -> None:
    data = encode_index(Summary(100, 400, 1234, 7, 99, 40, 300), made([(1, 1, 1)] * 5))
    assert decode_index(data, 101) is None
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 16
        assert decode_index(bytes(changed), 100) is None
        assert decode_index(data[:position], 100) is None
