"""A second writer of frames, made from docs/wire_format.md alone.

It shares no code with the package, so that the vectors are no mirror of it: struct and msgpack are
written out by hand here. Slow and plain on purpose.

``python -m tests.protocol.reference_frame`` writes the ``hex`` of every vector in
``tests/vectors/frames/*.json`` anew from its fields.
"""

import json
import struct
from pathlib import Path
from typing import Any

import xxhash

VECTORS = Path(__file__).parent.parent / "vectors" / "frames"
BATCHES = VECTORS.parent / "batches"


def load(path: Path) -> dict[str, Any]:
    """The description of a vector (README.md of the vectors)."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def paths() -> list[Path]:
    return sorted(VECTORS.glob("*.json"))


def body_of(vector: dict[str, Any]) -> bytes:
    """The batches named by the vector, back to back."""
    return b"".join((BATCHES / f"{name}.bin").read_bytes() for name in vector["body"])


def frame(vector: dict[str, Any]) -> bytes:
    """The bytes of the frame that ``vector`` describes."""
    head, body = value(vector["fields"]), body_of(vector)
    covered = struct.pack(
        ">IHHII",
        16 + len(head) + len(body),
        vector["api"],
        vector["version"],
        vector["correlation_id"],
        len(head),
    )
    check = xxhash.xxh32_intdigest(covered + head, seed=0)
    return covered + struct.pack(">I", check) + head + body


def value(described: Any) -> bytes:
    """The msgpack of a field."""
    match described:
        case None | True | False:
            return {None: b"\xc0", True: b"\xc3", False: b"\xc2"}[described]
        case int():
            return integer(described)
        case float():
            return b"\xcb" + struct.pack(">d", described)
        case str():
            return text(described)
        case list():
            return array([value(item) for item in described])
        case {"hex": hexed, **rest} if not rest:
            return binary(bytes.fromhex(hexed))
        case {"map": pairs, **rest} if not rest:
            assert len(pairs) < 16
            pieces = [text(name) + value(item) for name, item in pairs.items()]
            return bytes([0x80 | len(pairs)]) + b"".join(pieces)
        case dict():  # fields by name, in the order of the wire
            return array([value(item) for item in described.values()])
        case _:
            raise AssertionError(described)


def array(items: list[bytes]) -> bytes:
    n = len(items)
    start = bytes([0x90 | n]) if n < 16 else b"\xdc" + struct.pack(">H", n)
    return start + b"".join(items)


def binary(data: bytes) -> bytes:
    assert len(data) < 1 << 8
    return b"\xc4" + bytes([len(data)]) + data


def text(characters: str) -> bytes:
    encoded = characters.encode()
    n = len(encoded)
    if n < 32:
        return bytes([0xA0 | n]) + encoded
    if n < 1 << 8:
        return b"\xd9" + bytes([n]) + encoded
    return b"\xda" + struct.pack(">H", n) + encoded


def integer(number: int) -> bytes:
    if -32 <= number < 128:
        return struct.pack(">b", number)
    if number > 0:
        forms = ((8, b"\xcc", ">B"), (16, b"\xcd", ">H"), (32, b"\xce", ">I"), (64, b"\xcf", ">Q"))
        start, form = next((start, form) for bits, start, form in forms if number < 1 << bits)
    else:
        forms = ((7, b"\xd0", ">b"), (15, b"\xd1", ">h"), (31, b"\xd2", ">i"), (63, b"\xd3", ">q"))
        start, form = next((start, form) for bits, start, form in forms if number >= -(1 << bits))
    return start + struct.pack(form, number)


def write(path: Path) -> None:
    """Fill in the vector's bytes."""
    vector = load(path)
    vector["hex"] = frame(vector).hex()
    path.write_text(json.dumps(vector, indent=1) + "\n")


if __name__ == "__main__":
    for one in paths():
        write(one)
