"""New segment files that take the place of old ones, and what a crash in between leaves (S28).

``<base>-<next>.swap.tmp``: being written; never believed. ``<base>-<next>.swap``: whole and
durable: it *is* the segment of these offsets, whatever else lies in their range. The rename from
one to the other, made durable, is the moment at which the log becomes the new one. What follows
is tidying, in an order that may stop anywhere and be done again: the indexes of the range go, then
its log files but the first, durably; then the new file takes the name of the first.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from tailrace.storage import checkpoint
from tailrace.storage.disk import Disk

_NAME = re.compile(r"(\d{20})-(\d{20})\.swap")
_SEGMENT = re.compile(r"(\d{20})\.(?:log|index)")


class SwapName(NamedTuple):
    """The offsets that a swap file's name speaks for."""

    base_offset: int
    next_offset: int

    def path(self, directory: str) -> str:
        return f"{directory}/{self.base_offset:020}-{self.next_offset:020}.swap"

    def half_made(self, directory: str) -> str:
        """Where it is written; recovery removes every file so named."""
        return self.path(directory) + checkpoint.TEMPORARY

    def final(self, directory: str) -> str:
        return f"{directory}/{self.base_offset:020}.log"

    def covers(self, base_offset: int) -> bool:
        return self.base_offset <= base_offset < self.next_offset


def parse_name(name: str) -> SwapName | None:
    """None: no name of a published swap file."""
    found = _NAME.fullmatch(name)
    return None if found is None else SwapName(int(found[1]), int(found[2]))


def published(names: list[str]) -> list[SwapName]:
    """The swap files among the names of a directory."""
    return sorted(found for found in map(parse_name, names) if found is not None)


def replaced_by(swap: SwapName, names: list[str]) -> list[str]:
    """The files that go before the swap file takes its name; not the one whose name it takes."""
    own = f"{swap.base_offset:020}.log"
    found = [(name, _SEGMENT.fullmatch(name)) for name in names]
    within = [name for name, match in found if match is not None and swap.covers(int(match[1]))]
    return [name for name in within if name != own]


def tidy(disk: Disk, directory: str, swap: SwapName, sync: Callable[[], None]) -> None:
    """Remove what a published swap file replaces and give it its name; both durable on return.

    ``sync``: of the directory. Raises ``OSError``; may then be called again, as after a crash,
    unless it was the sync that failed. Does nothing where it was done.
    """
    if not disk.exists(swap.path(directory)):
        return
    for name in replaced_by(swap, disk.list(directory)):
        disk.remove(f"{directory}/{name}")
    sync()
    disk.rename(swap.path(directory), swap.final(directory))
    sync()


def complete(disk: Disk, directory: str) -> list[SwapName]:
    """End every swap that a crash interrupted behind its commit point; which they were.

    Before anything else looks at the directory. Raises ``OSError``, BrokerError T093.
    """

    def sync() -> None:
        with checkpoint.syncing(directory):
            disk.sync_directory(directory)

    found = published(disk.list(directory))
    if found:
        sync()  # whoever died may have renamed it and not come to the sync: it must not be lost now
    for swap in found:
        tidy(disk, directory, swap, sync)
    return found
