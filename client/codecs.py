"""Values to bytes and back: ``bytes``, ``str``, JSON, msgpack, Structs, models, and your own.

``bind`` turns what a user gave (``CodecSpec``) into two functions. The libraries behind them are
imported only when a codec of theirs is bound: ``import tailrace`` stays fast, and msgspec and
pydantic are no dependencies of the SDK.

Structs and models travel as JSON. A ``None`` never comes here: no key, and a tombstone.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, cast

from tailrace.client.records import T
from tailrace.protocol import texts_client, texts_config
from tailrace.protocol.errors import DecodeError

Part = Literal["key", "value"]
CodecName = Literal["json", "msgpack"]
C = TypeVar("C")


class Codec(Protocol[C]):
    """A codec of your own; both directions are called in the event loop's thread."""

    @property
    def name(self) -> str:
        """For error texts."""
        ...

    def encode(self, value: C) -> bytes:
        """Any exception becomes EncodeError T061 at the call that gave the value."""
        ...

    def decode(self, data: bytes) -> C:
        """Any exception becomes DecodeError T060 where the record is handed out."""
        ...


CodecSpec: TypeAlias = type[T] | CodecName | Codec[T]


@dataclass(frozen=True, slots=True)
class BoundCodec(Generic[T]):
    """A codec ready for use. The functions raise whatever they like (see ``encode_value``)."""

    name: str
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T] | None  # None: the bytes are the value


def bind(spec: CodecSpec[T], *, part: Part, call: str) -> BoundCodec[T]:
    """The codec that ``spec`` means; ConfigError T082 names ``part`` and ``call`` if none."""
    if isinstance(spec, str):
        named = _NAMED.get(spec)
        if named is not None:
            return cast(BoundCodec[T], named())
    elif isinstance(spec, type):
        found = _of_type(cast(type[Any], spec))
        if found is not None:
            return cast(BoundCodec[T], found)
    elif callable(getattr(spec, "encode", None)) and callable(getattr(spec, "decode", None)):
        name = getattr(spec, "name", None)
        return BoundCodec(str(name or type(spec).__name__), spec.encode, spec.decode)
    raise texts_config.bad_argument(
        part,
        spec,
        call=call,
        expected="a codec",
        hint="Use bytes, str, 'json', 'msgpack', a msgspec.Struct or pydantic model, or an object "
        "with name, encode and decode.",
    )


def encode_value(codec: BoundCodec[T], value: T | None, *, topic: str, part: Part) -> bytes | None:
    """The bytes of one key or value; None stays None. Raises EncodeError T061."""
    if value is None:
        return None
    try:
        data = codec.encode(value)
    except Exception as error:  # the border to codecs, ours and the user's
        raise texts_client.not_encodable(
            topic,
            part=part,
            codec=codec.name,
            type_name=type(value).__name__,
            reason=str(error),
        ) from error
    if type(data) is not bytes:
        raise texts_client.not_encodable(
            topic,
            part=part,
            codec=codec.name,
            type_name=type(value).__name__,
            reason=f"encode returned {type(data).__name__}, not bytes",
        )
    return data


def encode_column(
    codec: BoundCodec[T], values: Sequence[T | None], *, topic: str, part: Part
) -> list[bytes | None]:
    """The bytes of many; the first that cannot be encoded raises EncodeError T061."""
    if codec.decode is None:
        taken = list(values)
        kinds = list(map(type, taken))  # counting is half of what a set of them costs
        if kinds.count(bytes) == len(kinds) or set(kinds) <= _BYTES_OR_NONE:
            return cast("list[bytes | None]", taken)
    return [encode_value(codec, value, topic=topic, part=part) for value in values]


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Why bytes were refused, until it is known which record they belong to."""

    codec: str
    raw: bytes
    cause: Exception

    def error(self, topic: str, partition: int, offset: int) -> DecodeError:
        """T060, with a guess at what the bytes are."""
        error = texts_client.not_decodable(
            topic,
            partition,
            offset,
            codec=self.codec,
            raw=self.raw,
            guess=guess(self.raw, besides=self.codec),
        )
        error.__cause__ = self.cause
        return error


def decode_into(
    codec: BoundCodec[Any],
    raw: Sequence[bytes | None],
    into: list[Any],
    start: int,
    stop: int,
) -> tuple[int, Undecodable | None]:
    """Decode ``raw[start:stop]`` into the same places; (where it stopped, why if early)."""
    decode = codec.decode
    if decode is None:
        return stop, None
    index = start
    data: bytes | None = None
    try:
        for index in range(start, stop):
            data = raw[index]
            into[index] = None if data is None else decode(data)
    except Exception as error:  # the border to codecs, ours and the user's
        assert data is not None
        return index, Undecodable(codec.name, data, error)
    return stop, None


def guess(data: bytes, *, besides: str = "") -> str:
    """What bytes look like: "json", "msgpack", "str" or "bytes"; never what they are not."""
    if besides != "json" and data[:1] in (b"{", b"["):
        try:
            json.loads(data)
        except (ValueError, RecursionError):
            pass
        else:
            return "json"
    if besides != "msgpack" and data and (0x80 <= data[0] <= 0x9F or 0xDC <= data[0] <= 0xDF):
        try:
            _msgpack().decode(data)  # type: ignore[misc]
        except Exception:  # a guess at foreign bytes: whatever they break, they are not msgpack
            pass
        else:
            return "msgpack"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "bytes"
    printable = text.isprintable() or text.replace("\n", "").replace("\t", "").isprintable()
    return "str" if printable and besides != "str" else "bytes"


# ── the codecs ───────────────────────────────────────────────────────────────────────────────

_BYTES_OR_NONE = {bytes, type(None)}


def _bytes() -> BoundCodec[bytes]:
    def encode(value: object) -> bytes:
        if isinstance(value, bytes):
            return bytes(value)
        raise TypeError("bytes are wanted")

    return BoundCodec("bytes", encode, None)


def _str() -> BoundCodec[str]:
    def encode(value: object) -> bytes:
        if isinstance(value, str):
            return value.encode()
        raise TypeError("text is wanted")

    return BoundCodec("str", encode, bytes.decode)


def _json() -> BoundCodec[Any]:
    encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    return BoundCodec(
        "json",
        lambda value: encoder.encode(value).encode(),
        lambda data: decoder.decode(data.decode()),
    )


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _msgpack() -> BoundCodec[Any]:
    import msgpack

    packb = cast("Callable[..., bytes]", msgpack.packb)
    unpackb = cast("Callable[..., Any]", msgpack.unpackb)
    return BoundCodec(
        "msgpack",
        lambda value: packb(value, use_bin_type=True),
        lambda data: unpackb(data, raw=False, strict_map_key=False),
    )


# The last two are not in ``CodecName``, as the types say it better: T060's hint names them so.
_NAMED: dict[str, Callable[[], BoundCodec[Any]]] = {
    **{"json": _json, "msgpack": _msgpack, "bytes": _bytes, "str": _str}
}


def _of_type(kind: type[Any]) -> BoundCodec[Any] | None:
    if kind is bytes:
        return _bytes()
    if kind is str:
        return _str()
    # Whoever has such a class has imported its library: looking there imports nothing.
    msgspec: Any = sys.modules.get("msgspec")
    if msgspec is not None and issubclass(kind, msgspec.Struct):
        return BoundCodec(
            kind.__name__,
            _only(kind, msgspec.json.Encoder().encode),
            msgspec.json.Decoder(kind).decode,
        )
    pydantic: Any = sys.modules.get("pydantic")
    if pydantic is not None and issubclass(kind, pydantic.BaseModel):
        model: Any = kind
        return BoundCodec(
            kind.__name__,
            _only(kind, lambda value: value.model_dump_json().encode()),
            model.model_validate_json,
        )
    return None


def _only(kind: type[Any], encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Encode instances of ``kind`` alone: anything else would be refused by the reader."""

    def checked(value: Any) -> bytes:
        if isinstance(value, kind):
            return encode(value)
        raise TypeError(f"{kind.__name__} is wanted")

    return checked
