"""Making what several logs wrote durable at once: contents, then names.

A sync costs the disk about the same for one file as for hundreds, so whoever starts many logs
collects what each has ``Unsettled`` and takes three steps for all of them. The order is that of R22
and R23: what a checkpoint file tells of is durable before it gets its name, and so is the file.

A sync that fails is final: BrokerError T093 (R21). An ``OSError`` is about what may be had later.
"""

import os.path
from collections.abc import Sequence
from dataclasses import dataclass, field

from tailrace.storage import checkpoint
from tailrace.storage.disk import Disk, File


@dataclass(eq=False, slots=True)
class Unsettled:
    """Of one log. ``files``: their contents; ``staged``: files by the name that they are to get;
    ``directories``: names in them have to be durable before those are given."""

    files: list[File] = field(default_factory=list[File])
    staged: dict[str, File] = field(default_factory=dict[str, File])
    directories: set[str] = field(default_factory=set[str])

    def stage(self, disk: Disk, path: str, data: bytes) -> None:
        """Have the file at ``path`` replaced. Raises ``OSError``."""
        self.staged[path] = checkpoint.stage(disk, path, data)


def sync_contents(disk: Disk, parts: Sequence[Unsettled]) -> None:
    """The first step. After an error nothing is known about any of them."""
    files = [file for part in parts for file in (*part.files, *part.staged.values())]
    directories = sorted({path for part in parts for path in part.directories})
    try:
        if files or directories:
            where = os.path.commonpath([*(file.path for file in files), *directories])
            with checkpoint.syncing(where):
                disk.sync_together(files, directories)
    finally:
        for part in parts:
            part.files.clear()  # no more files stay open than the logs need
            for file in part.staged.values():
                file.close()


def publish(disk: Disk, part: Unsettled) -> None:
    """The second step, of each. It frees the blocks of what is replaced, which may take a disk some
    milliseconds: do it for many in several threads."""
    for path in part.staged:
        checkpoint.publish(disk, path)


def sync_names(disk: Disk, parts: Sequence[Unsettled]) -> None:
    """The third step; an error means the same."""
    directories = sorted({checkpoint.parent(path) for part in parts for path in part.staged})
    if directories:
        with checkpoint.syncing(os.path.commonpath(directories)):
            disk.sync_together([], directories)


def settle(disk: Disk, part: Unsettled) -> None:
    """All steps, for one log. Raises ``OSError``, BrokerError T093."""
    sync_contents(disk, [part])
    publish(disk, part)
    sync_names(disk, [part])
