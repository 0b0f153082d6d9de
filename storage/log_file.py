"""One file of a log, open for reading without a broker: what its name and its neighbours say of it.

A directory may be looked at in the middle of anything: a published swap file stands for all the
offsets in its name, and the log files in its range are history, whole or not (``storage.swap``).
"""

import os
from collections.abc import Iterator
from typing import Literal, NamedTuple

from tailrace.protocol import texts_cli
from tailrace.protocol.batch import BadBatch, BatchHeader, header_seed
from tailrace.storage import checkpoint, marks
from tailrace.storage.directory import parse_partition_name
from tailrace.storage.index import decode_index
from tailrace.storage.recovery import numbered
from tailrace.storage.salvage import ends_there
from tailrace.storage.scan import REASONS, Scanner
from tailrace.storage.swap import SwapName, parse_name, published

LOG = ".log"
State = Literal["active", "sealed", "swap", "replaced"]
_ANY = 1 << 63


class Place(NamedTuple):
    """What the names in a path say."""

    topic_id: bytes
    partition: int
    base_offset: int
    swap: SwapName | None  # of a swap file that waits for its name


class Role(NamedTuple):
    """What a file is in its directory."""

    state: State
    end_offset: int | None  # where the next segment begins; None: it is the last, or nobody knows


def place_of(path: str) -> Place:
    """Of a log file or a published swap file. Raises InputError T062 if it is neither."""
    directory, _, name = os.path.abspath(path).rpartition("/")
    where = parse_partition_name(directory.rpartition("/")[2])
    swap, bases = parse_name(name), numbered([name], "", LOG)
    if where is None or not (bases or swap):
        reason = f"{path} is not <topic id>-<partition>/<20 digits>{LOG}"
        raise texts_cli.invalid_input(reason, hint="See: tailrace segment --help")
    return Place(*where, bases[0] if swap is None else swap.base_offset, swap)


def files_in(names: list[str]) -> list[str]:
    """The names of log files and published swap files of a directory, by offset."""
    found = [(base, f"{base:020}{LOG}") for base in numbered(names, "", LOG)]
    found += [(swap.base_offset, swap.path(".")[2:]) for swap in published(names)]
    return [name for _, name in sorted(found)]


def role_of(place: Place, names: list[str]) -> Role:
    """What the names of a directory say of a file in it."""
    base, swaps = place.base_offset, published(names)
    if place.swap is not None:
        return Role("swap", place.swap.next_offset)
    if any(swap.covers(base) for swap in swaps):
        return Role("replaced", None)
    begins = [*numbered(names, "", LOG), *(swap.base_offset for swap in swaps)]
    later = [at for at in begins if at > base]
    return Role("sealed", min(later)) if later else Role("active", None)


class LogFile:
    """One log file, open for reading, with what its name and its neighbours say of it."""

    def __init__(self, path: str) -> None:
        """Raises InputError T062 if the path is no log file of a partition, or cannot be opened."""
        self.path = path
        place = place_of(path)
        self.topic_id, self.partition, self.base_offset, _ = place
        self.seed = header_seed(self.topic_id, self.partition)
        directory = os.path.dirname(os.path.abspath(path))
        self.names = os.listdir(directory)  # as the file is judged by them
        role = role_of(place, self.names)
        self.state: State = role.state
        self.end_offset = role.end_offset
        mark = read_mark(directory)
        self.mark_base = mark.segment_base if mark is not None else -1
        durable = mark.offset if mark is not None else None
        if self.end_offset is not None and (durable is None or durable > self.end_offset):
            durable = self.end_offset
        if self.state == "replaced":
            durable = None  # nothing in it is missed
        self.durable_offset = durable or self.base_offset  # a bad batch below: corruption
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise texts_cli.invalid_input(
                f"{path}: {error.strerror}", hint="See: tailrace segment list DIR"
            ) from None

    @property
    def index_path(self) -> str:
        return self.path.removesuffix(LOG) + ".index"

    def __enter__(self) -> "LogFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def is_current(self) -> bool:
        """Whether the names in the directory, and what this one stands for, are still the same."""
        directory = os.path.dirname(os.path.abspath(self.path))
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False
        return same and files_in(os.listdir(directory)) == files_in(self.names)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, length: int, position: int) -> bytes:
        return os.pread(self._descriptor, length, position)

    def next_data(self, position: int) -> int:
        seek_data: int | None = getattr(os, "SEEK_DATA", None)
        if seek_data is None or position >= self.size():
            return min(position, self.size())
        try:
            return os.lseek(self._descriptor, position, seek_data)
        except OSError:
            return self.size()

    def sound(self) -> Iterator[tuple[int, BatchHeader | str]]:
        """Every batch that continues the log with its position, and why one does not.

        Behind something bad it goes on with the next sound batch, if there is one.
        """
        scanner = Scanner(self, self.seed)
        position, expected = 0, self.base_offset
        while expected != self.end_offset:
            found = scanner.at(position)
            if isinstance(found, BatchHeader) and self._continues(found, expected):
                yield position, found
                position, expected = position + found.size_bytes, found.next_offset
                continue
            if isinstance(found, BatchHeader):
                reason = f"offsets {found.base_offset} to {found.last_offset} where {expected} "
                reason += f"should follow, in a segment that ends at {self.end_offset}"
                search = position
            else:
                zeros = "zeros where a batch should be"
                reason = REASONS[found.reason] if isinstance(found, BadBatch) else zeros
                search = scanner.past(position)
            below = self.end_offset if self.end_offset is not None else _ANY
            resume = scanner.find(search, self.size(), expected, below)
            if resume is None and scanner.data_end(position) == position:
                if expected < self.durable_offset:
                    yield position, reason
                return
            yield position, reason
            if resume is None:
                return
            position, expected = resume

    def _continues(self, found: BatchHeader, expected: int) -> bool:
        fits = self.end_offset is None or found.next_offset <= self.end_offset
        return found.base_offset == expected and fits

    def is_torn(self, offset: int, position: int) -> bool:
        """Whether what is unsound there is only what a crash leaves behind an unfinished write."""
        if offset < self.durable_offset:
            return False
        scanner = Scanner(self, self.seed)
        return scanner.find(scanner.past(position), self.size(), offset, _ANY) is None

    def is_followed_by_gap(self, next_offset: int, end: int) -> bool:
        """Whether it is whole, and a file is missing behind it: its index or the mark tells."""
        if self.data_end(end) > end:
            return False
        if self.mark_base == next_offset > self.base_offset:
            return True  # the segment that begins there was written to
        if self.state != "sealed":
            return False
        try:
            with open(self.index_path, "rb") as stored:
                found = decode_index(stored.read(), self.base_offset)
        except FileNotFoundError:
            return False
        return found is not None and ends_there(found[0], next_offset, end)

    def data_end(self, position: int) -> int:
        """Behind the last byte from there on that is not zero."""
        return Scanner(self, self.seed).data_end(position)


def read_mark(directory: str) -> marks.Mark | None:
    """The flushed mark of a partition's directory, None if it is missing or damaged."""
    try:
        with open(marks.flushed_path(directory), "rb") as file:
            data = file.read(4096)
    except OSError:
        return None
    body = checkpoint.decode(checkpoint.Kind.FLUSHED, data)
    return None if body is None else marks.decode_mark(body)
