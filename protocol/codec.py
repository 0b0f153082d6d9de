"""Messages to heads and back: positional msgpack, strict and bounded.

The schema of a message is its dataclass: the annotations are read once, on first use, and turned
into tables; a head is then decoded by the C library and checked against these tables.

- A tuple of types decides arity and types at once (``bool`` is no ``int``, there are no floats
  where integers belong); ranges are checked after it, nested messages one by one.
- Whatever does not fit raises ConnectError T121, naming the message and the field.
- Bounds: arrays 10,000, maps 256, no ext types, text keys without repeats, nothing behind the
  head. Depth is bounded by the schema, size by the frame's limits.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from operator import attrgetter
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgpack

from tailrace.protocol.fields import IntRange
from tailrace.protocol.texts_wire import malformed_frame

ARRAY_MAX = 10_000
MAP_MAX = 256

T = TypeVar("T")
Row = tuple[Any, ...]
Convert = Callable[[Any], Any]


class _Map(list[tuple[Any, Any]]):
    """A map as it came, repeats and all."""


def _refuse_ext(code: int, data: bytes) -> Any:
    raise ValueError(f"ext type {code} is not allowed")


_msgpack = cast(Any, msgpack)  # the library is not typed
_pack: Callable[[Any], bytes] = _msgpack.packb
_unpack: Callable[[bytes], Any] = partial(
    _msgpack.unpackb,
    use_list=False,
    raw=False,
    strict_map_key=True,
    object_pairs_hook=_Map,
    ext_hook=_refuse_ext,
    max_array_len=ARRAY_MAX,
    max_map_len=MAP_MAX,
    max_ext_len=0,
)


def encode_message(message: object) -> bytes:
    """The head of a message.

    Raises ConnectError T121 if it cannot travel: a number outside its range, a text that is not
    Unicode. The connection stays good: nothing was sent.
    """
    try:
        return _pack(_ENCODERS[type(message)](message))
    except (ValueError, OverflowError) as error:
        raise malformed_frame(f"{type(message).__name__} cannot be encoded: {error}") from error


def decode_message(cls: type[T], head: bytes) -> T:
    """The message in a head. Raises ConnectError T121 unless it is exactly such a message."""
    try:
        row = _unpack(head)
    except ValueError as error:  # every error of msgpack, of UTF-8 and of our hook is one
        raise malformed_frame(f"{cls.__name__} is not msgpack: {error}") from error
    try:
        return cast(T, _DECODERS[cls](row))
    except _Mismatch as error:
        raise malformed_frame(str(error)) from None


class _Mismatch(ValueError):
    """A value the schema does not allow."""


class _Compiled(dict[type, Convert]):
    """Encoders or decoders by class, made on first use."""

    def __init__(self, compiler: Callable[[type], Convert]) -> None:
        super().__init__()
        self._compiler = compiler

    def __missing__(self, cls: type) -> Convert:
        self[cls] = convert = self._compiler(cls)
        return convert


# ── the schema of a field ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Field:
    """One annotation, taken apart."""

    name: str
    kinds: tuple[type, ...]  # what msgpack may bring here
    bounds: tuple[int, int] | None  # of an integer
    decode: Convert | None  # for what is more than its type
    encode: Convert | None


def _schema(cls: type) -> list[_Field]:
    hints = get_type_hints(cls, include_extras=True)
    return [_field(f"{cls.__name__}.{field.name}", hints[field.name]) for field in fields(cls)]


def _field(name: str, annotation: Any) -> _Field:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (UnionType, Union):
        inner, nothing = arguments
        assert nothing is NoneType, f"{name}: only X | None is a schema"
        found = _field(name, inner)
        return _Field(
            name, (*found.kinds, NoneType), found.bounds, _maybe(found.decode), _maybe(found.encode)
        )
    if origin is Annotated:
        base, limits = arguments
        assert base is int
        assert isinstance(limits, IntRange)
        return _Field(name, (int,), (limits.low, limits.high), None, None)
    if origin is tuple:
        item, rest = arguments
        assert rest is Ellipsis, f"{name}: only tuple[X, ...] is a schema"
        decode, encode = _items(_field(f"{name}[]", item))
        return _Field(name, (tuple,), None, decode, encode)
    if origin is dict:
        return _Field(name, (_Map,), None, partial(_decode_details, name), None)
    if is_dataclass(annotation):
        message = cast(type, annotation)
        return _Field(name, (tuple,), None, _DECODERS[message], _ENCODERS[message])
    assert annotation in (str, bytes, bool), f"{name}: {annotation} is not in the schema language"
    return _Field(name, (annotation,), None, None, None)


def _maybe(convert: Convert | None) -> Convert | None:
    if convert is None:
        return None
    return lambda value: None if value is None else convert(value)


def _items(item: _Field) -> tuple[Convert, Convert | None]:
    """Decoder and encoder of a ``tuple[X, ...]``; None: the tuple goes to msgpack as it is."""
    if item.bounds is not None:
        return _integers(item, *item.bounds)
    kinds, decode, encode = frozenset(item.kinds), item.decode, item.encode

    def decode_items(values: Row) -> Row:
        if not kinds.issuperset(map(type, values)):
            raise _Mismatch(f"{item.name} holds a value of the wrong type")
        return values if decode is None else tuple([decode(value) for value in values])

    if encode is None:
        return decode_items, None
    return decode_items, lambda values: [encode(value) for value in values]


def _integers(item: _Field, low: int, high: int) -> tuple[Convert, Convert]:
    """The same for integers with a range."""
    kinds = frozenset(item.kinds)
    assert kinds == {int}, f"{item.name}: arrays of integers hold no nil"

    def check(values: Row) -> Row:
        if values and not low <= min(values) <= max(values) <= high:
            raise _Mismatch(f"{item.name} holds a number outside {low} to {high}")
        return values

    def decode_integers(values: Row) -> Row:
        if not kinds.issuperset(map(type, values)):
            raise _Mismatch(f"{item.name} holds a value of the wrong type")
        return check(values)

    return decode_integers, check


_SCALARS = frozenset({str, int, float, bool, NoneType})


def _decode_details(name: str, pairs: _Map) -> dict[str, Any]:
    """A map of text to scalars or arrays of scalars: the attributes of an error."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if type(key) is not str or key in found:
            raise _Mismatch(f"{name} has a repeated key or one that is no text")
        many = value.__class__ is tuple
        scalars: list[Any] = list(value) if many else [value]
        if not _SCALARS.issuperset(map(type, scalars)):
            raise _Mismatch(f"{name} holds more than scalars and arrays of them")
        if any(type(scalar) is float and not math.isfinite(scalar) for scalar in scalars):
            raise _Mismatch(f"{name} holds a number that is not finite")
        found[key] = scalars if many else value
    return found


# ── whole messages ───────────────────────────────────────────────────────────────────────────


def _encoder(cls: type) -> Convert:
    """From a message to the sequence that msgpack packs."""
    schema = _schema(cls)
    names = [field.name.rpartition(".")[2] for field in schema]
    row_of = _row_getter(names)
    ranges = _ranges(schema)
    nested = [(i, field.encode) for i, field in enumerate(schema) if field.encode is not None]

    def encode(message: Any) -> Sequence[Any]:
        row = row_of(message)
        for i, name, low, high in ranges:
            value = row[i]
            if value is not None and not low <= value <= high:
                raise _Mismatch(f"{name} {value} is outside {low} to {high}")
        if not nested:
            return row
        values = list(row)
        for i, convert in nested:
            values[i] = convert(values[i])
        return values

    return encode


def _row_getter(names: Sequence[str]) -> Callable[[Any], Row]:
    if len(names) > 1:
        return attrgetter(*names)
    if not names:
        return lambda message: ()
    only = attrgetter(names[0])  # of one name it gives no tuple
    return lambda message: (only(message),)


def _decoder(cls: type) -> Convert:
    """From what msgpack read to a message; raises ``_Mismatch``."""
    schema = _schema(cls)
    shapes = frozenset(itertools.product(*(field.kinds for field in schema)))
    ranges = _ranges(schema)
    nested = [(i, field.decode) for i, field in enumerate(schema) if field.decode is not None]

    def decode(row: Row) -> Any:
        if type(row) is not tuple or tuple(map(type, row)) not in shapes:
            raise _Mismatch(_why(cls, schema, row))
        for i, name, low, high in ranges:
            if row[i] is not None and not low <= row[i] <= high:
                raise _Mismatch(f"{name} {row[i]} is outside {low} to {high}")
        if nested:
            values = list(row)
            for i, convert in nested:
                values[i] = convert(values[i])
            return cls(*values)
        return cls(*row)

    return decode


def _ranges(schema: Sequence[_Field]) -> list[tuple[int, str, int, int]]:
    """Position, name and bounds of the integers."""
    return [(i, f.name, *f.bounds) for i, f in enumerate(schema) if f.bounds is not None]


def _why(cls: type, schema: Sequence[_Field], row: Row | None) -> str:
    """Why a row has none of the shapes."""
    if not isinstance(row, tuple):
        return f"{cls.__name__} is not an array"
    if len(row) != len(schema):
        return f"{cls.__name__} has {len(row)} fields, expected {len(schema)}"
    wrong = next(f for f, v in zip(schema, row, strict=True) if type(v) not in f.kinds)
    return f"{wrong.name} has the wrong type"


_ENCODERS = _Compiled(_encoder)
_DECODERS = _Compiled(_decoder)
