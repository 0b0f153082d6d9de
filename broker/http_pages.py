"""A page of records: read and written out piece by piece, so that 8 MiB of JSON never stand in
memory, and nobody waits for the whole of it.

What goes wrong before the first record is the answer. What goes wrong later ends the page before
it: ``next_offset`` stands there, and the next page says it.
"""

import logging
from collections.abc import AsyncGenerator

import trio

from tailrace.broker.http_guard import FREE_BYTES, Account
from tailrace.broker.record_reading import Chunk, Cursor, Fetched, Place, RecordReader
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.record_json import Decode

log = logging.getLogger("tailrace.broker.http")

PAGE_BYTES_MAX = 8 * 1024 * 1024  # of JSON; one larger record comes alone
PIECE_BYTES = 32_768  # or one larger record; a smaller page is whole before the answer begins


class Page:
    """One page. ``begin`` it first; then ``pieces`` are its body.

    ``account``: for records that make a piece a large one. Where it has no room for one the page
    ends before it.
    """

    def __init__(
        self,
        reader: RecordReader,
        place: Place,
        offset: int,
        account: Account,
        *,
        limit: int,
        decode: Decode,
    ) -> None:
        self.next_offset = offset
        self.complete = False  # nothing more is to be read
        self._account = account
        self._reader = reader
        self._place = place
        self._decode: Decode = decode
        self._left = limit
        self._bytes = 0
        self._waiting: list[bytes] = []  # written out, not yet taken
        self.waiting_bytes = 0  # of them
        self._fetched = Fetched([], offset, 0, 0)
        self._cursor: Cursor | None = None
        self._begun = False

    async def begin(self, wait_s: float, slots: trio.CapacityLimiter) -> None:
        """Read the first of it, waiting so long for a record. Raises what keeps it from that.

        ``slots``: of those who read. Who waits has no batches in memory.
        """
        deadline = trio.current_time() + wait_s
        while True:
            await self._go_on(slots, may_hold=False)
            left_s = deadline - trio.current_time()
            if self._bytes or left_s <= 0:
                return
            if not await self._reader.wait(self._place, self.next_offset, left_s):
                return
            self.complete = False

    async def pieces(
        self, slots: trio.CapacityLimiter, *, may_hold: bool
    ) -> AsyncGenerator[bytes, None]:
        """The document, from its first byte to its last.

        ``may_hold``: whether batches stay in memory while a piece is taken; else they are fetched
        again for the next.
        """
        yield b'{"records":['
        while True:
            if self._waiting:
                if self._begun:
                    yield b","
                self._begun = True
                yield self._joined()
                self._account.hold(0)
            if self.complete:
                break
            await self._go_on(slots, may_hold=may_hold)
        yield (
            f'],"next_offset":{self.next_offset},"log_start":{self._fetched.log_start},'
            f'"high_watermark":{self._fetched.high_watermark}}}'
        ).encode()

    def _joined(self) -> bytes:
        """What waits; one record alone is not copied."""
        joined = b",".join(self._waiting)
        self._waiting.clear()
        self.waiting_bytes = 0
        return joined

    async def _go_on(self, slots: trio.CapacityLimiter, *, may_hold: bool) -> None:
        """Read on until a piece is full, or there is an end to it."""
        try:
            async with slots:
                while not self.complete and self.waiting_bytes < PIECE_BYTES:
                    if self._cursor is None and not self._fetched.batches:
                        await self._fetch()
                    await self._read()
                if not may_hold:
                    self._fetched.batches.clear()
                    self._cursor = None
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
            if ahead_bytes := self._cursor.ahead_bytes:
                self._account.hold(self.waiting_bytes + ahead_bytes)
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
            if self.waiting_bytes + len(line) > FREE_BYTES:
                self._account.hold(self.waiting_bytes + len(line))
            self._waiting.append(line)
            self.waiting_bytes += len(line)
            self._bytes += len(line) + 1
            self.next_offset = behind
        self.next_offset = chunk.next_offset
        self._left -= len(chunk.lines)
        self.complete = self._left <= 0
