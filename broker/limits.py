"""What one connection, one address and all requests together may take; pure.

Limits that are settings come from ``[limits]``; the rest are the constants below.
"""

import ipaddress
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from tailrace.protocol import limits, texts_wire

RECEIVE_BYTES = 262_144  # one receive
RESERVED_BYTES_MIN = 32_768  # a frame that lacks more waits for room in the memory budget
IN_FLIGHT_MAX = 16  # requests of one connection without an answer; then it is not read
OUT_BYTES_MAX = 4 * 1024 * 1024  # answers of one connection not yet taken; then it is not read
NEW_PER_IP_PER_S = 100
GREETING_MAX = 500  # connections that have not said hello yet, of all
FETCH_PARTITION_BYTES_MAX = 1_048_576  # of one partition in one answer, save one larger batch
FETCH_WAIT_MS_MAX = 60_000
FETCH_SESSIONS_MAX = 64  # of one connection; beyond them nothing stands
FETCH_STANDING_MAX = 20_000  # partitions, in all of them together
FETCHES_OWED_MAX = 3  # of a follower, on one connection: so many it sends before an answer comes
POLL_WAIT_MS_MAX = 30_000  # of any other long poll
PARTITIONS_PER_REQUEST_MAX = limits.PARTITIONS_PER_REQUEST_MAX
TOPICS_PER_REQUEST_MAX = limits.TOPICS_PER_REQUEST_MAX
ID_BYTES_MAX = 255  # of clients, groups, members and instances

HANDSHAKE_S = 10.0  # TLS
HELLO_S = 10.0  # from then to a complete hello
HEADER_S = 5.0  # from the first byte of a frame to its header
BODY_S = 10.0  # from then to its end, at least; or as long as BODY_BYTES_PER_S gives
BODY_BYTES_PER_S = 16_384
WRITE_STALL_S = 30.0  # answers wait and the peer takes not one byte
LEAVE_STALL_S = 3.0  # the same while the broker stops: the rest of the stop must have its time


def check_count(count: int, most: int, *, of: str) -> None:
    """T121 for a request with too many. ``of``: "partitions"."""
    if count > most:
        raise texts_wire.malformed_frame(f"{count} {of} in one request, {most} are allowed")


def check_each_once(named: Collection[object], *, kind: str) -> None:
    """T121 for a request that names one twice. ``kind``: "partition"."""
    if len(set(named)) < len(named):
        raise texts_wire.malformed_frame(f"a {kind} is named twice in one request")


def is_id(text: str) -> bool:
    """Whether a client, group, member or instance may be called that."""
    return 1 <= len(text.encode()) <= ID_BYTES_MAX and text.isprintable()


@dataclass(slots=True)
class _Address:
    open: int = 0
    accepted: deque[float] = field(default_factory=deque[float])  # times within the last second


@dataclass(slots=True)
class Admission:
    """Which connections are let in. Invariant: ``open`` is the sum over all addresses."""

    connections_max: int
    per_ip_max: int
    open: int = 0
    greeting: int = 0  # of those open, how many have not said hello
    _addresses: dict[str, _Address] = field(default_factory=dict[str, _Address])

    def admit(self, ip: str, now: float) -> tuple[str, int] | None:
        """Count a connection in, or say which limit forbids it: (setting, its value)."""
        if self.open >= self.connections_max:
            return "connections", self.connections_max
        if self.greeting >= GREETING_MAX:
            return "connections (greeting)", GREETING_MAX
        address = self._addresses.setdefault(ip, _Address())
        if not is_loopback(ip):
            if address.open >= self.per_ip_max:
                return "connections_per_ip", self.per_ip_max
            while address.accepted and address.accepted[0] <= now - 1.0:
                address.accepted.popleft()
            if len(address.accepted) >= NEW_PER_IP_PER_S:
                return "connections_per_ip (new in 1 s)", NEW_PER_IP_PER_S
            address.accepted.append(now)
        address.open += 1
        self.open += 1
        self.greeting += 1
        return None

    def greeted(self) -> None:
        """One of the connections said hello, or left without."""
        self.greeting -= 1
        assert self.greeting >= 0

    def leave(self, ip: str) -> None:
        self.open -= 1
        address = self._addresses[ip]
        address.open -= 1
        assert self.open >= 0
        assert address.open >= 0
        if address.open == 0 and len(self._addresses) > self.connections_max:
            # Addresses are kept for their rate; not more of them than connections, though.
            self._addresses = {ip: one for ip, one in self._addresses.items() if one.open}


@dataclass(slots=True)
class MemoryBudget:
    """Bytes of requests in hand: from their arrival until they are answered.

    - What a large frame lacks is reserved before it is read, first come first served: whoever got
      room can always finish. One frame alone always gets room.
    - Small frames are charged when they are there; while the budget is used up nobody reads.
    """

    total_bytes: int | None  # None: unlimited
    used_bytes: int = 0
    _waiting: deque[tuple[int, Callable[[], None]]] = field(
        default_factory=deque[tuple[int, Callable[[], None]]]
    )

    def charge(self, size_bytes: int) -> None:
        """Count what has already arrived."""
        self.used_bytes += size_bytes

    def reserve(self, size_bytes: int) -> bool:
        """Take room now, if there is some and nobody waits for it already."""
        if self._waiting or not self._fits(size_bytes):
            return False
        self.used_bytes += size_bytes
        return True

    def wait(self, size_bytes: int, granted: Callable[[], None]) -> Callable[[], bool]:
        """Reserve when there is room, then call ``granted``.

        Returns how to give up, which says whether it came too late: the room is yours then.
        """
        place = (size_bytes, granted)
        self._waiting.append(place)

        def give_up() -> bool:
            if place not in self._waiting:
                return True
            self._waiting.remove(place)
            self._grant()
            return False

        return give_up

    def give(self, size_bytes: int) -> None:
        """Return what was charged or reserved."""
        self.used_bytes -= size_bytes
        assert self.used_bytes >= 0
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size_bytes, granted = self._waiting.popleft()
            self.used_bytes += size_bytes
            granted()

    def _fits(self, size_bytes: int) -> bool:
        if self.total_bytes is None or self.used_bytes == 0:
            return True
        return self.used_bytes + size_bytes <= self.total_bytes


def is_loopback(ip: str) -> bool:
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
