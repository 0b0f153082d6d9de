"""A page of records: read and written out piece by piece, so that 8 MiB of JSON never stand in
memory, and nobody waits for the whole of it.

What goes wrong before the first record is the answer. What goes wrong later ends the page before
it: ``next_offset`` stands there, and the next page says it.
"""

import logging
from collections.abc import AsyncIterator

import trio

from tailrace.broker.record_reading import Chunk, Cursor, Fetched, Place, RecordReader
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.record_json import Decode

log = logging.getLogger("tailrace.broker.http")

PAGE_BYTES_MAX = 8 * 1024 * 1024  # of JSON; one larger record comes alone
PIECE_BYTES = 65_536  # sent at once; a smaller page is whole before the answer begins


class Page:
    """One page. ``begin`` it first; then ``pieces`` are its body."""

    def __init__(
        self, reader: RecordReader, place: Place, offset: int, *, limit: int, decode: Decode
    ) -> None:
        self.next_offset = offset
        self.complete = False  # nothing more is to be read
        self._reader = reader
        self._place = place
        self._decode: Decode = decode
        self._left = limit
        self._bytes = 0
        self._waiting: list[bytes] = []  # written out, not yet taken
        self._waiting_bytes = 0
        self._fetched = Fetched([], offset, 0, 0)
        self._cursor: Cursor | None = None
        self._begun = False

    async def begin(self, wait_s: float, slots: trio.CapacityLimiter) -> None:
        """Read the first of it, waiting so long for a record. Raises what keeps it from that.

        ``slots``: of those who have batches in memory. Who waits has none.
        """
        deadline = trio.current_time() + wait_s
        while True:
            async with slots:
                await self._go_on()
                # Whoever writes out the rest may have to wait: it is fetched again then.
                self._fetched.batches.clear()
                self._cursor = None
            left_s = deadline - trio.current_time()
            if self._bytes or left_s <= 0:
                return
            if not await self._reader.wait(self._place, self.next_offset, left_s):
                return
            self.complete = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """The document, from its first byte to its last."""
        yield b'{"records":['
        while True:
            waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
            if waiting:
                yield (b"," if self._begun else b"") + b",".join(waiting)
                self._begun = True
            if self.complete:
                break
            await self._go_on()
        yield (
            f'],"next_offset":{self.next_offset},"log_start":{self._fetched.log_start},'
            f'"high_watermark":{self._fetched.high_watermark}}}'
        ).encode()

    async def _go_on(self) -> None:
        """Read on until a piece is full, or there is an end to it."""
        try:
            while not self.complete and self._waiting_bytes < PIECE_BYTES:
                if self._cursor is None and not self._fetched.batches:
                    await self._fetch()
                await self._read()
        except TailraceError as error:
            if not self._bytes:
                raise
            self.complete = True
            log.debug("page ends at %d: %s", self.next_offset, error)

    async def _fetch(self) -> None:
        self._fetched = await self._reader.fetch(self._place, self.next_offset)
        self.complete = not self._fetched.batches

    async def _read(self) -> None:
        """Write out a chunk of what was fetched."""
        if self._cursor is None and self._fetched.batches:
            header, entry = self._fetched.batches.pop(0)
            self._cursor = await self._reader.open(self._place, header, entry, self._decode)
            if self._cursor is None:
                self.next_offset = header.next_offset
            else:
                self._cursor.seek(self.next_offset)
        if self._cursor is not None:
            self._take(self._cursor.take(self._left))
            if not self._cursor.left:
                self._cursor = None
            await trio.lowlevel.checkpoint()

    def _take(self, chunk: Chunk) -> None:
        """Keep a chunk, or as much of it as the page has room for."""
        for line, behind in zip(chunk.lines, chunk.behind, strict=True):
            if self._bytes and self._bytes + len(line) + 1 > PAGE_BYTES_MAX:
                self.complete = True
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line)
            self._bytes += len(line) + 1
            self.next_offset = behind
        self.next_offset = chunk.next_offset
        self._left -= len(chunk.lines)
        self.complete = self._left <= 0
