"""A second writer of record batches, made from docs/log_format.md alone.

It shares no code with the package, so that the vectors are no mirror of it: msgpack is written
out by hand here. Slow and plain on purpose.

``python -m tests.protocol.reference_batch NAME...`` writes ``NAME.bin`` from ``NAME.json``.
"""

import json
import struct
import sys
from pathlib import Path
from typing import Any

import lz4.frame
import xxhash
import zstandard

VECTORS = Path(__file__).parent.parent / "vectors" / "batches"
CODECS = {"none": 0, "lz4": 3, "zstd": 4}


def load(name: str) -> dict[str, Any]:
    """The description of a vector."""
    found: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text())
    return found


def raw(hexed: str | None) -> bytes | None:
    """A key or value of a description."""
    return None if hexed is None else bytes.fromhex(hexed)


def entry(vector: dict[str, Any], section: bytes | None = None) -> bytes:
    """The bytes of the batch that ``vector`` describes (README.md of the vectors).

    ``section``: other bytes to seal in the place of its records, already compressed.
    """
    if section is None:
        section = compressed(document(vector), vector["compression"])
    payload = (
        struct.pack(
            ">hiqqqhii",
            vector["attributes"] | CODECS[vector["compression"]],
            vector["last_offset_delta"],
            vector["base_timestamp"],
            vector["max_timestamp"],
            vector["producer_id"],
            vector["producer_epoch"],
            vector["base_sequence"],
            len(vector["records"]),
        )
        + section
    )
    checked = struct.pack(
        ">HBBQqqiibI",
        0x5452,
        1,
        1,
        xxhash.xxh3_64_intdigest(payload, seed=0),
        vector["append_time"],
        vector["base_offset"],
        9 + len(payload),
        vector["leader_epoch"],
        2,
        0,
    )
    return struct.pack(">I", xxhash.xxh32_intdigest(checked, seed=seed(vector))) + checked + payload


def seed(vector: dict[str, Any]) -> int:
    where = bytes.fromhex(vector["topic_id"]) + struct.pack(">i", vector["partition"])
    return xxhash.xxh32_intdigest(where, seed=0)


def compressed(plain: bytes, compression: str) -> bytes:
    if compression == "lz4":
        frame: bytes = lz4.frame.compress(plain)
        return frame
    if compression == "zstd":
        return zstandard.ZstdCompressor().compress(plain)
    return plain


def document(vector: dict[str, Any]) -> bytes:
    records = vector["records"]
    timestamps = [r["timestamp"] - vector["base_timestamp"] for r in records]
    offsets = [r["offset"] - vector["base_offset"] for r in records]
    dense = len(records) - 1 == vector["last_offset_delta"]
    with_keys = any(r["key"] is not None for r in records)
    with_headers = any(r["headers"] for r in records)
    return b"\x95" + b"".join(
        (
            array([integer(t) for t in timestamps]) if any(timestamps) else b"\xc0",
            b"\xc0" if dense else array([integer(o) for o in offsets]),
            array([binary(raw(r["key"])) for r in records]) if with_keys else b"\xc0",
            array([binary(raw(r["value"])) for r in records]),
            array([header_array(r["headers"]) for r in records]) if with_headers else b"\xc0",
        )
    )


def header_array(headers: list[tuple[str, str | None]]) -> bytes:
    if not headers:
        return b"\xc0"
    return array([b"\x92" + text(name) + binary(raw(value)) for name, value in headers])


def array(elements: list[bytes]) -> bytes:
    n = len(elements)
    head = bytes([0x90 | n]) if n < 16 else b"\xdc" + struct.pack(">H", n)
    return head + b"".join(elements)


def binary(value: bytes | None) -> bytes:
    if value is None:
        return b"\xc0"
    n = len(value)
    if n < 1 << 8:
        return b"\xc4" + struct.pack(">B", n) + value
    if n < 1 << 16:
        return b"\xc5" + struct.pack(">H", n) + value
    return b"\xc6" + struct.pack(">I", n) + value


def text(value: str) -> bytes:
    encoded = value.encode()
    n = len(encoded)
    if n < 32:
        return bytes([0xA0 | n]) + encoded
    if n < 1 << 8:
        return b"\xd9" + struct.pack(">B", n) + encoded
    return b"\xda" + struct.pack(">H", n) + encoded


def integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b", value)
    if value >= 0:
        forms = ((1 << 8, b"\xcc", ">B"), (1 << 16, b"\xcd", ">H"), (1 << 32, b"\xce", ">I"))
        for end, head, form in forms:
            if value < end:
                return head + struct.pack(form, value)
        return b"\xcf" + struct.pack(">Q", value)
    forms = ((1 << 7, b"\xd0", ">b"), (1 << 15, b"\xd1", ">h"), (1 << 31, b"\xd2", ">i"))
    for end, head, form in forms:
        if value >= -end:
            return head + struct.pack(form, value)
    return b"\xd3" + struct.pack(">q", value)


def main(names: list[str]) -> None:
    for name in names:
        (VECTORS / f"{name}.bin").write_bytes(entry(load(name)))


if __name__ == "__main__":
    main(sys.argv[1:])
