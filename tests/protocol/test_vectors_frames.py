"""The frames of tests/vectors: fields to bytes and bytes to fields, and no damage goes unseen."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from tailrace.protocol import messages
from tailrace.protocol.batch import header_ok, payload_ok
from tailrace.protocol.codec import decode_message, encode_message
from tailrace.protocol.errors import ConnectError
from tailrace.protocol.frame import HEADER_BYTES, Frame, FrameLimits, FrameReader, encode_frame
from tailrace.protocol.messages import REQUESTS, RESPONSES
from tests.protocol.reference_batch import seed
from tests.protocol.reference_frame import BATCHES, body_of, frame, load, paths

GENEROUS = FrameLimits(lambda api: 1 << 20, 1 << 20)


def name_of(path: Path) -> str:
    return path.stem


every_vector = pytest.mark.parametrize("path", paths(), ids=name_of)


def described(value: Any) -> Any:
    """A message in the notation of the vectors."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, tuple):
        return [described(item) for item in value]
    if isinstance(value, dict):
        return {"map": value}
    if is_dataclass(value):
        return {field.name: described(getattr(value, field.name)) for field in fields(value)}
    return value


def build(hint: Any, value: Any) -> Any:
    """The message that the notation of the vectors describes."""
    if get_origin(hint) in (UnionType, Union):
        return None if value is None else build(get_args(hint)[0], value)
    if get_origin(hint) is tuple:
        return tuple(build(get_args(hint)[0], item) for item in value)
    if isinstance(hint, type) and is_dataclass(hint):
        hints = get_type_hints(hint)
        assert list(value) == list(hints), "fields stand in the order of the wire"
        return hint(*(build(hints[name], item) for name, item in value.items()))
    if isinstance(value, dict):
        return value["map"] if "map" in value else bytes.fromhex(value["hex"])
    return value


def read(data: bytes) -> Frame | None:
    reader = FrameReader(GENEROUS)
    reader.feed(data)
    return reader.next()


def test_there_is_a_vector_for_every_request_and_response() -> None:
    named = {(load(path)["api"], load(path)["message"]) for path in paths()}
    expected = {(int(api), cls.__name__) for api, cls in [*REQUESTS.items(), *RESPONSES.items()]}
    assert named == expected


@every_vector
def test_reference_writer_gives_the_bytes(path: Path) -> None:
    vector = load(path)
    assert frame(vector).hex() == vector["hex"]


@every_vector
def test_fields_encode_to_the_bytes(path: Path) -> None:
    vector = load(path)
    message = build(getattr(messages, vector["message"]), vector["fields"])
    head, body = encode_message(message), body_of(vector)
    where = (vector["api"], vector["version"], vector["correlation_id"])
    assert (encode_frame(*where, head, len(body)) + body).hex() == vector["hex"]


@every_vector
def test_bytes_decode_to_the_fields(path: Path) -> None:
    vector = load(path)
    found = read(bytes.fromhex(vector["hex"]))
    assert found is not None
    assert (found.api, found.version) == (vector["api"], vector["version"])
    assert found.correlation_id == vector["correlation_id"]
    message = decode_message(getattr(messages, vector["message"]), found.head)
    assert described(message) == vector["fields"]
    assert bytes(found.body) == body_of(vector)


@every_vector
def test_every_prefix_waits_for_more(path: Path) -> None:
    data = bytes.fromhex(load(path)["hex"])
    for length in range(len(data)):
        reader = FrameReader(GENEROUS)
        reader.feed(data[:length])
        assert reader.next() is None
        assert (reader.missing_bytes > 0) == (length > 0)
        reader.feed(data[length:])
        assert reader.next() == read(data)


def outcome(data: bytes) -> Frame | str | None:
    """A frame, the code of the error, or None: waits for more."""
    try:
        return read(data)
    except ConnectError as error:
        return error.code


def assert_damage_is_seen(path: Path, flips: tuple[int, ...]) -> None:
    vector = load(path)
    data = bytes.fromhex(vector["hex"])
    body_at = len(data) - len(body_of(vector))
    for position in range(body_at):
        for flip in flips:
            damaged = bytearray(data)
            damaged[position] ^= flip
            assert outcome(bytes(damaged)) in ("T121", "T124"), f"byte {position} ^ {flip:#x}"
    assert body_at >= HEADER_BYTES


@every_vector
def test_every_flipped_bit_of_header_and_head_is_a_typed_error(path: Path) -> None:
    assert_damage_is_seen(path, (1, 128, 255))


@pytest.mark.slow
@every_vector
def test_every_single_byte_corruption_of_header_and_head_is_a_typed_error(path: Path) -> None:
    assert_damage_is_seen(path, tuple(range(1, 256)))


@pytest.mark.parametrize("path", [p for p in paths() if load(p)["body"]], ids=name_of)
def test_every_corruption_of_a_body_is_found_by_its_batch(path: Path) -> None:
    vector = load(path)
    data = bytes.fromhex(vector["hex"])
    at = len(data) - len(body_of(vector))
    for name in vector["body"]:
        length = (BATCHES / f"{name}.bin").stat().st_size
        batch_seed = seed(load(BATCHES / f"{name}.json"))
        for position in range(at, at + length):
            damaged = bytearray(data)
            damaged[position] ^= 0x40
            found = read(bytes(damaged))
            assert found is not None
            batch = found.body[at - len(data) :][:length]
            assert not (header_ok(batch, 0, batch_seed) and payload_ok(batch, 0, length))
        at += length
