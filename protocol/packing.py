"""msgpack within fixed bounds: the one place that touches the library (it ships no types).

Invariants:
- nothing is allocated by a length that the bytes merely claim: every element is there, or the
  value is refused before it is built;
- extension types, map keys other than text or bytes, and text that is no UTF-8 are refused;
- exactly one value, nothing behind it.

What shape the value has is for the caller to check: this module knows no schema.
"""

from collections.abc import Callable
from typing import Any, NoReturn, cast

import msgpack

ARRAY_LENGTH_MAX = 10_000
MAP_LENGTH_MAX = 256

_packb = cast(Callable[..., bytes], msgpack.packb)  # pyright: ignore[reportUnknownMemberType]
_unpackb = cast(Callable[..., Any], msgpack.unpackb)  # pyright: ignore[reportUnknownMemberType]
_unpacker = cast(Callable[..., Any], msgpack.Unpacker)


class PackingError(ValueError):
    """The bytes are not exactly one msgpack value within the bounds."""


def pack(value: object) -> bytes:
    """The shortest msgpack form of ``value``: ``bytes`` as bin, ``str`` as str.

    A fresh packer each time: a kept one measured the same and would not be safe in two threads.
    """
    return _packb(value, use_bin_type=True)


def unpack(
    data: bytes | bytearray | memoryview,
    *,
    items_max: int,
    map_length_max: int = MAP_LENGTH_MAX,
) -> Any:
    """The value that ``data`` encodes, made of None, bool, int, float, str, bytes, list, dict.

    ``items_max`` bounds the elements of all arrays together: lists of small lists take thirty
    times the memory of their bytes, which no bound on single lengths prevents. Raises
    ``PackingError``.
    """
    items = 0

    def count_items(array: list[object]) -> list[object]:
        nonlocal items
        items += len(array)
        if items > items_max:
            raise PackingError(f"more than {items_max} array elements")
        return array

    try:
        check_complete(data)
        return _unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_array_len=ARRAY_LENGTH_MAX,
            max_map_len=map_length_max,
            max_ext_len=0,
            ext_hook=_refuse_extension,
            list_hook=count_items,
        )
    except PackingError:
        raise
    except (ValueError, TypeError) as error:
        raise PackingError(f"no valid msgpack: {str(error) or type(error).__name__}") from error


def check_complete(data: bytes | bytearray | memoryview) -> None:
    """Walk over one value without building it; ``PackingError`` unless it ends where ``data`` does.

    A thousand nested headers of 3 bytes that each claim 10,000 elements would take 80 MB; the
    walk costs a quarter of building the value and finds that the elements are not there.
    """
    if not len(data):
        raise PackingError("no value")
    walker = _unpacker(max_buffer_size=len(data))
    walker.feed(data)
    try:
        walker.skip()
    except msgpack.OutOfData:
        raise PackingError("the value ends too early") from None
    if walker.tell() != len(data):
        raise PackingError(f"{len(data) - walker.tell()} bytes behind the value")


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise PackingError(f"extension type {code}")
