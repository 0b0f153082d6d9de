"""How much room there is for records, and who may still have some of it (R28). Pure.

Two limits, whichever is nearer: ``storage.min_free`` of the file system stays free, and all records
together take at most ``storage.max_size``. The room up to them is looked up now and then and
estimated in between, from what was appended.

- Below the room ``low`` the housekeeping makes room, up to ``high``: first what retention lets go,
  then the oldest segments of topics with ``on_full = drop_oldest``. So such a topic finds room
  before it needs it.
- Without room, topics with ``on_full = reject`` get T031, until 1% more is there (hysteresis).
- Topics with ``drop_oldest`` may go on into the reserve for the moment it takes to remove segments;
  they get T031 when nothing is left to be dropped, or the last bytes are reached.
- Topics of the broker itself are never refused: the reserve is theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tailrace.broker.kinds import Free
from tailrace.protocol.units import format_size

HYSTERESIS = 0.01  # of the limit's whole: so much more must be free to write again
HIGH_SHARE, HIGH_MAX_BYTES = 8, 1 << 30  # of the capacity, as a divisor
LOOK_SHARE = 8  # a new look after an eighth of ``high`` was appended
PARTITION_BYTES = 32_768  # the files of a partition that was just made
RETRY_AFTER_S = 5.0  # what a producer is told that has to wait for somebody to make room
RETRY_SOON_S = 0.1  # … for segments to be removed


@dataclass(frozen=True, slots=True)
class Budget:
    """What the settings allow."""

    min_free: Free
    min_free_text: str  # as it was set
    max_size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Room:
    """What a look found."""

    free_bytes: int  # on the file system
    total_bytes: int
    used_bytes: int  # by all records


class Space:
    """The room of one broker. ``ballast_bytes``: the last bytes, which no producer gets."""

    def __init__(self, budget: Budget, room: Room, ballast_bytes: int) -> None:
        self.read_only = False  # topics that may not drop are refused
        self.drained = False  # there is nothing left that may be dropped
        self._quota = False  # a write since the last look found it used up
        self.wanted: Callable[[], None] = lambda: None  # called when it is time for a look
        self._budget = budget
        self._ballast_bytes = ballast_bytes
        self._room = room
        self._appended_bytes = 0  # since the last look
        self._look_at_bytes = 0  # appended, at which the next one is due
        self.room_bytes = 0  # up to the nearer limit; negative beyond it
        self.look(room, missing_ballast=0)

    # ── how much ─────────────────────────────────────────────────────────────────────────────

    @property
    def capacity_bytes(self) -> int:
        """What records may take at the very most."""
        return min(self._room.total_bytes, self._budget.max_size_bytes or self._room.total_bytes)

    @property
    def limits_records(self) -> bool:
        """Whether ``Room.used_bytes`` matters."""
        return self._budget.max_size_bytes is not None

    @property
    def free_bytes(self) -> int:
        return max(0, self._room.free_bytes - self._appended_bytes)

    @property
    def used_bytes(self) -> int:
        return self._room.used_bytes + self._appended_bytes

    @property
    def high_bytes(self) -> int:
        """The room that making room makes."""
        return min(self.capacity_bytes // HIGH_SHARE, HIGH_MAX_BYTES)

    @property
    def pressed(self) -> bool:
        """Whether it is time to make room."""
        return self.read_only or self.room_bytes < self.high_bytes // 2

    @property
    def missing_bytes(self) -> int:
        """How much has to go so that nobody wants for room; 0 or less: nothing."""
        missing = self.high_bytes - self.room_bytes
        if self.read_only:
            missing = max(missing, *self._hysteresis(missing_ballast=self._ballast_bytes))
        return missing

    def _below_min_free(self) -> int:
        return self.free_bytes - self._budget.min_free.bytes_of(self._room.total_bytes)

    def _below_max_size(self) -> int:
        limit_bytes = self._budget.max_size_bytes
        return self._below_min_free() if limit_bytes is None else limit_bytes - self.used_bytes

    # ── looks, and what happens in between ───────────────────────────────────────────────────

    def look(self, room: Room, *, missing_ballast: int) -> None:
        """The state of the disk now; ``missing_ballast``: bytes the ballast still has to take."""
        self._room, self._appended_bytes, self._quota = room, 0, False
        self._look_at_bytes = self.high_bytes // LOOK_SHARE
        self.room_bytes = min(self._below_min_free(), self._below_max_size())
        if self.room_bytes >= self.high_bytes // 2:
            self.drained = False
        if self.read_only:
            self.read_only = any(more > 0 for more in self._hysteresis(missing_ballast))
        else:
            self.read_only = self.room_bytes < 0

    def _hysteresis(self, missing_ballast: int) -> tuple[int, int]:
        """What must go before writes are taken again, for either limit."""
        reserve_bytes = int(self._room.total_bytes * HYSTERESIS) + missing_ballast
        budget_bytes = int((self._budget.max_size_bytes or 0) * HYSTERESIS)
        return reserve_bytes - self._below_min_free(), budget_bytes - self._below_max_size()

    def appended(self, size_bytes: int) -> None:
        """So much was written since. On the hot path."""
        self._appended_bytes += size_bytes
        self.room_bytes -= size_bytes
        if self._appended_bytes >= self._look_at_bytes:
            self._look_at_bytes += self.high_bytes // LOOK_SHARE
            self.wanted()

    def ran_out(self, *, quota: bool = False) -> None:
        """A write found the disk full, whatever the estimate says; ``quota``: this user's share."""
        self._quota = quota
        self.appended(self.free_bytes)
        self.wanted()

    # ── who is refused ───────────────────────────────────────────────────────────────────────

    def refuses(self, *, may_drop: bool) -> bool:
        """Whether a producer gets T031; ``may_drop``: the topic's ``on_full``."""
        if self.room_bytes >= 0:
            return self.read_only and not may_drop
        if not may_drop:
            return True
        last_bytes = self.free_bytes < min(
            self._ballast_bytes, self._budget.min_free.bytes_of(self._room.total_bytes)
        )
        return self.drained or last_bytes or self._below_max_size() < -self.high_bytes

    def refuses_partitions(self, count: int) -> bool:
        """Whether there is no room even for new, empty partitions."""
        return self.free_bytes < self._ballast_bytes + count * PARTITION_BYTES

    def retry_after_s(self, *, may_drop: bool) -> float:
        """When a producer that was refused may ask again."""
        return RETRY_SOON_S if may_drop and not self.drained else RETRY_AFTER_S

    def shortage(self) -> tuple[str, str]:
        """What there is and what the limit is, in words: ("1.5 GiB free", "min_free 5%")."""
        if self._below_max_size() < self._below_min_free():
            limit = format_size(self._budget.max_size_bytes or 0)
            return f"{format_size(self.used_bytes)} used", f"max_size {limit}"
        quota = " (disk quota exceeded)" if self._quota else ""
        free = f"{format_size(self.free_bytes)} free{quota}"
        return free, f"min_free {self._budget.min_free_text}"
