"""The OFFSET grammar of the command line and HTTP: a place in a partition, not yet looked up.

``start``, ``end``, ``N``, ``-N`` (N before the end), ``@2h`` (ago), ``@2026-11-20T10:00``.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tailrace.protocol.units import parse_duration_s

FORMS = "start, end, N, -N, @2h or @2026-11-20T10:00"


@dataclass(frozen=True, slots=True)
class Position:
    """One place, not yet resolved for a partition."""

    kind: str  # start, end, offset, back (N before the end), time; consume: committed
    number: int = 0
    time: datetime | None = None

    @property
    def time_ms(self) -> int:
        """Of a ``time``: ms since the epoch, not below 0."""
        assert self.time is not None, "only a time has one"
        return max(0, int(self.time.timestamp() * 1_000))


def parse_position(text: str, now: datetime, *, forms: str = FORMS) -> Position:
    """One place; a ``ValueError`` that shows ``forms`` if it is none."""
    if text in ("start", "end"):
        return Position(text)
    if re.fullmatch(r"[0-9]{1,18}", text):
        return Position("offset", int(text))
    if re.fullmatch(r"-[0-9]{1,18}", text):
        return Position("back", int(text[1:]))
    if text.startswith("@"):
        return Position("time", time=parse_time(text[1:], now))
    raise ValueError(f"'{text}' is no offset: {forms}")


def parse_time(text: str, now: datetime) -> datetime:
    """``2h`` ago, or an ISO time; without a zone it is local. ``ValueError`` if it is neither."""
    try:
        return now - timedelta(seconds=parse_duration_s(text))
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"'@{text}' is no duration and no time ({error})") from error
