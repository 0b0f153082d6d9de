"""Making a log an empty one that starts somewhere else, in its files.

A follower needs that where its leader's log has nothing any more that would continue its own. The
file ``reset``, once it is durable, says that all others are not the log's any more; then they go,
the new start is written, and ``reset`` goes itself. A crash in between leaves the rest to the next
start, before anything else looks at the directory.
"""

import struct

from tailrace.storage import checkpoint, marks
from tailrace.storage.disk import Disk

NAME = "reset"
_OFFSET = struct.Struct(">q")


def begin(disk: Disk, directory: str, offset: int) -> None:
    """From now on the log is an empty one that starts at ``offset``, whatever happens.

    Raises ``OSError`` with the log as it was, BrokerError T093 if a sync fails.
    """
    data = checkpoint.encode(checkpoint.Kind.RESET, _OFFSET.pack(offset))
    checkpoint.replace(disk, f"{directory}/{NAME}", data)


def complete(disk: Disk, directory: str, names: list[str]) -> bool:
    """End what ``begin`` began, durably; whether there was anything. ``OSError``, T093.

    May be repeated after an ``OSError``. A file that is damaged says nothing (R26): it is removed.
    """
    if NAME not in names:
        return False
    path = f"{directory}/{NAME}"
    # Whoever began it may have died before its own sync: it must not be lost behind what follows.
    checkpoint.sync_names(disk, directory)
    body = checkpoint.read(disk, path, checkpoint.Kind.RESET)
    if body is not None and len(body) == _OFFSET.size:
        (offset,) = _OFFSET.unpack(body)
        for name in names:
            if name != NAME:
                disk.remove(f"{directory}/{name}")
        checkpoint.sync_names(disk, directory)
        checkpoint.replace(disk, marks.start_path(directory), marks.encode_start(offset))
    disk.remove(path)
    checkpoint.sync_names(disk, directory)
    return True
