"""Whether zeros are to be written ahead of a log (pure).

Overwriting them is synced in half the time, which is worth a second write where syncs are small. A
log that takes large batches would only write everything twice.
"""

AGAIN_BYTES = 2 * 1024 * 1024  # appended since zeros were last written
FIRST_BYTES = 65_536  # one that is hardly used gets none
SYNC_BYTES = 65_536  # syncs of more than this, on average, gain nothing


class Ahead:
    """What was appended to one log, and in how many syncs, since this was last decided."""

    __slots__ = ("_appended_bytes", "_due_bytes", "_syncs")

    def __init__(self) -> None:
        self._appended_bytes = 0
        self._due_bytes = FIRST_BYTES
        self._syncs = 0

    def appended(self, size_bytes: int) -> None:
        """The log has grown."""
        self._appended_bytes += size_bytes

    def synced(self) -> None:
        """A sync of what was appended has begun."""
        self._syncs += 1

    def wanted(self) -> bool:
        """Whether zeros should be written as soon as the disk is idle; until then it stays so."""
        if self._appended_bytes < self._due_bytes:
            return False
        if self._appended_bytes <= SYNC_BYTES * max(1, self._syncs):
            return True
        self._again_after(FIRST_BYTES)
        return False

    def written(self, zeros_bytes: int) -> None:
        """So many are there now: again when half of them are used up."""
        half_bytes = min(AGAIN_BYTES, zeros_bytes // 2)
        self._again_after(half_bytes or AGAIN_BYTES)

    def _again_after(self, size_bytes: int) -> None:
        self._appended_bytes = self._syncs = 0
        self._due_bytes = size_bytes
