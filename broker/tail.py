"""One tail: which events go out next, what is left out, and where a reader may resume (pure).

- Events go out in the order in which their chunks came; each names, as its id, the next offset of
  every partition behind it, so that a reader that names its last id misses nothing and sees
  nothing twice;
- chunks from the shared followers are dropped, and counted, while ``QUEUE_BYTES`` of them wait:
  the reader does not keep up;
- above ``rate`` records per second the rest is dropped, and counted, too;
- a dropped record moves the id on, by the ``dropped`` event that tells of it.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tailrace.broker.record_reading import Chunk

QUEUE_BYTES = 131_072


@dataclass(slots=True)
class _Records:
    """Records ``start`` to ``stop`` of a chunk."""

    chunk: Chunk
    start: int
    stop: int
    size_bytes: int


@dataclass(slots=True)
class _Dropped:
    """Records that were left out, and where to go on behind them."""

    count: int = 0
    behind: dict[int, int] = field(default_factory=dict[int, int])


class Tail:
    """``positions``: by partition, the next offset to be read."""

    def __init__(self, positions: Mapping[int, int], *, rate: int | None, now: float) -> None:
        self.positions = dict(positions)  # behind everything that came, dropped or not
        self.waiting_bytes = 0
        self.dropped = 0  # in all
        self._sent = dict(positions)  # behind everything that went out
        self._queue: deque[_Records | _Dropped] = deque()
        self._rate = rate
        self._tokens = float(rate or 0)
        self._filled_at = now

    # ── in ───────────────────────────────────────────────────────────────────────────────────

    def offer(self, chunk: Chunk, now: float) -> None:
        """What a follower found; known records of it are skipped, without a word."""
        position = self.positions[chunk.partition]
        start = bisect_right(chunk.behind, position)
        self.positions[chunk.partition] = max(position, chunk.next_offset)
        count = len(chunk.lines) - start
        if count <= 0:
            self.skip(chunk.partition, chunk.next_offset)
            return
        allowed = 0 if self.full else min(count, self.allowance(now))
        self._put(chunk, start, start + allowed)
        if allowed < count:
            self._drop(chunk.partition, count - allowed, chunk.next_offset)

    def drop(self, partition: int, count: int, next_offset: int) -> None:
        """Leave out records that nobody has written out."""
        self.positions[partition] = max(self.positions[partition], next_offset)
        self._drop(partition, count, next_offset)

    def skip(self, partition: int, next_offset: int) -> None:
        """There is nothing more below this offset: records were removed, or all of them came."""
        self.positions[partition] = max(self.positions[partition], next_offset)
        if not self._queue:
            self._sent[partition] = max(self._sent[partition], next_offset)

    def allowance(self, now: float) -> int:
        """How many records may go out now."""
        if self._rate is None:
            return 1 << 62
        self._tokens = min(self._rate, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        return int(self._tokens)

    @property
    def full(self) -> bool:
        """Whether the reader is so far behind that what comes now is left out."""
        return self.waiting_bytes >= QUEUE_BYTES

    @property
    def pending(self) -> bool:
        """Whether there is an event to be sent."""
        return any(isinstance(one, _Records) or one.count for one in self._queue)

    def _put(self, chunk: Chunk, start: int, stop: int) -> None:
        if stop <= start:
            return
        self._tokens -= stop - start
        # Every chunk counts by its share, so that what waits is what it takes.
        size_bytes = max(1, chunk.size_bytes * (stop - start) // len(chunk.lines))
        self.waiting_bytes += size_bytes
        self._queue.append(_Records(chunk, start, stop, size_bytes))

    def _drop(self, partition: int, count: int, next_offset: int) -> None:
        if not self._queue or not isinstance(last := self._queue[-1], _Dropped):
            last = _Dropped()
            self._queue.append(last)
        last.count += count
        last.behind[partition] = next_offset
        self.dropped += count

    # ── out ──────────────────────────────────────────────────────────────────────────────────

    def opening(self) -> bytes:
        """An id without an event: who is cut off before the first one resumes here."""
        return f"id: {self._id()}\n\n".encode()

    def take(self, bytes_max: int) -> bytes:
        """Events of about so many bytes, at least one if any is pending."""
        pieces: list[bytes] = []
        left = bytes_max
        while self._queue and left > 0:
            first = self._queue[0]
            if isinstance(first, _Dropped):
                self._queue.popleft()
                self._sent.update(first.behind)
                if first.count:
                    head = f"event: dropped\nid: {self._id()}\ndata: "
                    event = f'{head}{{"records":{first.count}}}\n\n'
                    pieces.append(event.encode())
                    left -= len(pieces[-1])
                continue
            stop = first.stop if first.size_bytes <= left else _stop(first, left)
            left -= self._compose(first.chunk, first.start, stop, pieces)
            if stop == first.stop:
                self._queue.popleft()
                self.waiting_bytes -= first.size_bytes
            else:
                share = first.size_bytes * (stop - first.start) // (first.stop - first.start)
                first.start, first.size_bytes = stop, first.size_bytes - share
                self.waiting_bytes -= share
        return b"".join(pieces)

    def _compose(self, chunk: Chunk, start: int, stop: int, pieces: list[bytes]) -> int:
        """The events of some records; how many bytes they take."""
        partition, behind = chunk.partition, chunk.behind
        if len(self._sent) == 1:
            if not chunk.events:
                chunk.events = _events(chunk, f"{partition}:", "")
            if stop - start == len(chunk.lines):
                chunk.joined = chunk.joined or b"".join(chunk.events)
                pieces.append(chunk.joined)
                self._sent[partition] = behind[-1]
                return len(chunk.joined)
            events = chunk.events[start:stop]
        else:
            before, after = self._id_around(partition)
            part = Chunk(partition, chunk.lines[start:stop], behind[start:stop], 0, 0)
            events = _events(part, before, after)
        pieces += events
        self._sent[partition] = behind[stop - 1]
        return sum(map(len, events))

    def _id(self) -> str:
        return ",".join(f"{partition}:{offset}" for partition, offset in self._sent.items())

    def _id_around(self, partition: int) -> tuple[str, str]:
        """The id before and behind one partition's offset."""
        before: list[str] = []
        after: list[str] = []
        side = before
        for number, offset in self._sent.items():
            if number == partition:
                side = after
            else:
                side.append(f"{number}:{offset}")
        head = "".join(f"{one}," for one in before) + f"{partition}:"
        return head, "".join(f",{one}" for one in after)


def _stop(records: _Records, bytes_max: int) -> int:
    """How far to go for about so many bytes."""
    size_bytes, at = 0, records.start
    while at < records.stop and size_bytes < bytes_max:
        size_bytes += len(records.chunk.lines[at])
        at += 1
    return at


def _events(chunk: Chunk, before: str, after: str) -> list[bytes]:
    head = f"event: record\nid: {before}".encode()
    middle = f"{after}\ndata: ".encode()
    return [
        b"%b%d%b%b\n\n" % (head, behind, middle, line)
        for line, behind in zip(chunk.lines, chunk.behind, strict=True)
    ]


def parse_last_id(text: str, partitions: Iterable[int]) -> dict[int, int]:
    """The offsets of a Last-Event-ID; ValueError for one that is none of these partitions'."""
    known = set(partitions)
    found: dict[int, int] = {}
    for part in text.split(","):
        number, colon, offset = part.strip().partition(":")
        plain = number.isascii() and number.isdigit() and offset.isascii() and offset.isdigit()
        if not colon or not plain or len(number) > 10 or len(offset) > 18:
            raise ValueError(f"{part!r} is no PARTITION:OFFSET")
        if int(number) not in known or int(number) in found:
            raise ValueError(f"partition {int(number)} is none of this tail's, or named twice")
        found[int(number)] = int(offset)
    return found
