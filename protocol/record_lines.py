"""Record JSON straight from the columns of a batch: what HTTP sends, by the thousand.

The text is that of ``record_json.record_document``, written without building the document: 3 us
instead of 5 for a record of text. The caller takes a few at a time, so that nobody waits for long.
"""

from collections.abc import Sequence
from json.encoder import encode_basestring as quoted

from tailrace.protocol.batch import BatchHeader, Columns
from tailrace.protocol.record_json import Decode, compact, encode_bytes, header_document

LARGE_CHARACTERS = 65_536  # of a value: its text is quoted a piece at a time
PIECE_CHARACTERS = 16_384
_PLAIN = bytes(one for one in range(32, 256) if one not in b'"\\')  # nothing of it is escaped


class RecordLines:
    """The records of one batch, each as compact JSON in UTF-8, by their place in it."""

    def __init__(
        self, topic: str, partition: int, header: BatchHeader, columns: Columns, decode: Decode
    ) -> None:
        self._columns = columns
        self._base_offset = header.base_offset
        self._decode: Decode = decode
        self._key_decode: Decode = "utf8" if decode == "auto" else decode
        self._head = f'{{"topic":{quoted(topic)},"partition":{partition},"offset":'
        self._append_time = f',"append_time":{header.append_time},"key":'

    def __len__(self) -> int:
        return len(self._columns.values)

    def offset(self, index: int) -> int:
        """Of the record at ``index``."""
        deltas = self._columns.offsets
        return self._base_offset + (index if deltas is None else deltas[index])

    def size_bytes(self, index: int) -> int:
        """Key, value and headers, uncompressed."""
        columns = self._columns
        key = None if columns.keys is None else columns.keys[index]
        size = len(key or b"") + len(columns.values[index] or b"")
        found = None if columns.headers is None else columns.headers[index]
        return size + sum(len(name.encode()) + len(data or b"") for name, data in found or ())

    def text_bytes(self, index: int) -> int:
        """What its line takes at most, but for some hundred bytes, where its value is text: what
        is escaped takes six bytes."""
        value = self._columns.values[index] or b""
        return self.size_bytes(index) + 5 * len(value.translate(None, _PLAIN))

    def line(self, index: int) -> bytes:
        """The record at ``index``."""
        columns = self._columns
        deltas = columns.timestamps
        timestamp = columns.base_timestamp + (0 if deltas is None else deltas[index])
        key = None if columns.keys is None else columns.keys[index]
        found = None if columns.headers is None else columns.headers[index]
        key_text, key_encoding, key_quoted = _shown(key, self._key_decode, key=True)
        text, encoding, is_quoted = _shown(columns.values[index], self._decode)
        key_json = quoted(key_text) if key_quoted else key_text
        before = (
            f'{self._head}{self.offset(index)},"timestamp":{timestamp}{self._append_time}'
            f'{key_json},"key_encoding":"{key_encoding}","value":'
        )
        behind = (
            f',"value_encoding":"{encoding}","headers":{_headers(found)},'
            f'"size_bytes":{self.size_bytes(index)}}}'
        )
        if is_quoted and len(text) > LARGE_CHARACTERS:
            return _joined(before, text, behind)
        return f"{before}{quoted(text) if is_quoted else text}{behind}".encode()


def _joined(before: str, text: str, behind: str) -> bytes:
    """A line with a long text. Escaped it takes six times its bytes at worst: that much stands in
    memory twice for a moment, not four times."""
    out = bytearray(before.encode())
    out += b'"'
    for first in range(0, len(text), PIECE_CHARACTERS):
        out += quoted(text[first : first + PIECE_CHARACTERS])[1:-1].encode()
    out += b'"'
    out += behind.encode()
    return bytes(out)


def _shown(data: bytes | None, decode: Decode, *, key: bool = False) -> tuple[str, str, bool]:
    """(text, name of its encoding, whether it is to be quoted; else it is JSON)."""
    if data is None:
        return "null", "null", False
    if decode in ("auto", "utf8") and data[:1] not in (b"{", b"["):
        try:
            return data.decode(), "utf8", True
        except UnicodeDecodeError:
            pass
    value, encoding = encode_bytes(data, decode, key=key)
    if encoding == "json" and decode == "auto":
        return data.decode(), encoding, False  # its compact form equals its bytes
    if encoding == "json" or encoding == "msgpack":
        return compact(value), encoding, False
    return str(value), encoding, True


def _headers(headers: Sequence[tuple[str, bytes | None]] | None) -> str:
    if not headers:
        return "[]"
    return compact([[name, header_document(data)] for name, data in headers])
