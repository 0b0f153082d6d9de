"""msgpack within bounds: one value, complete, and no larger than it says."""

import pytest
from hypothesis import given, strategies as st

from tailrace.protocol.packing import PackingError, pack, unpack

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(values)
def test_values_come_back(value: object) -> None:
    assert unpack(pack(value), items_max=1000) == value


@given(values)
def test_every_truncation_and_extension_is_refused(value: object) -> None:
    data = pack(value)
    for length in range(len(data)):
        with pytest.raises(PackingError):
            unpack(data[:length], items_max=1000)
    with pytest.raises(PackingError, match="1 bytes behind"):
        unpack(data + b"\xc0", items_max=1000)


@given(st.binary(max_size=100))
def test_arbitrary_bytes_give_a_value_or_a_packing_error(data: bytes) -> None:
    try:
        value = unpack(data, items_max=1000)
    except PackingError:
        return
    assert value is None or isinstance(value, bool | int | float | str | bytes | list | dict)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no value"),
        (b"\xdd\xff\xff\xff\xff", "ends too early"),
        (b"\xdf\xff\xff\xff\xff", "ends too early"),
        (b"\xc6\xff\xff\xff\xff", "ends too early"),
        (b"\xdc\x27\x10" * 1000, "ends too early"),
        (b"\xdc\x27\x11" + bytes(10_001), "exceeds max_array_len"),
        (b"\xde\x01\x01" + bytes(2 * 257), "exceeds max_map_len"),
        (b"\x91" * 2000 + b"\xc0", "StackError"),
        (b"\xc1", "FormatError"),
        (b"\xa1\xff", "utf-8"),
        (b"\xd4\x01\x00", "max_ext_len"),
        (b"\xc7\x00\x01", "extension"),
        (b"\xd6\xff\x00\x00\x00\x00", "max_ext_len"),
        (b"\x81\x01\xc0", "map key"),
        (b"\x81\x90\xc0", "map key"),
        (b"\x92" + b"\x94\xc0\xc0\xc0\xc0" * 2, "more than 7 array elements"),
    ],
)
def test_what_is_out_of_bounds_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(PackingError, match=reason):
        unpack(data, items_max=7)
