"""The OFFSET argument of ``consume``: where to start and, for ``FROM:TO``, where to stop."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import click

from tailrace.protocol.units import parse_duration_s


@dataclass(frozen=True, slots=True)
class Position:
    """One end of a range, not yet resolved for a partition."""

    kind: str  # start, end, committed, offset, back (N before the end) or time
    number: int = 0
    time: datetime | None = None


FORMS = "start, end, N, -N, @2h or @2026-11-20T10:00"
RANGE_FORMS = "start, end, N, -N, @2h, @2026-11-20T10:00 or FROM:TO"


def parse_range(text: str, now: datetime) -> tuple[Position, Position | None]:
    """(from, to or None); a ``UsageError`` that shows the forms if it is none of them."""
    if text.startswith("@"):
        # A time has colons of its own: a range of times has an @ behind its colon too.
        first, separator, second = text[1:].partition(":@")
        to = parse_position(f"@{second}", now) if separator else None
        return parse_position(f"@{first}", now), to
    first, separator, second = text.partition(":")
    start = parse_position(first, now, forms=RANGE_FORMS)
    return start, parse_position(second, now, forms=RANGE_FORMS) if separator else None


def parse_position(text: str, now: datetime, *, forms: str = FORMS) -> Position:
    """One place; a ``UsageError`` that shows ``forms`` if it is none."""
    if text in ("start", "end"):
        return Position(text)
    if text == "committed":
        raise click.UsageError("'committed' is where a member of a group begins: consume -g GROUP")
    if re.fullmatch(r"[0-9]{1,18}", text):
        return Position("offset", int(text))
    if re.fullmatch(r"-[0-9]{1,18}", text):
        return Position("back", int(text[1:]))
    if text.startswith("@"):
        return Position("time", time=parse_time(text[1:], now))
    raise click.UsageError(f"'{text}' is no offset: {forms}")


def parse_time(text: str, now: datetime) -> datetime:
    """``2h`` ago, or an ISO time; without a zone it is local."""
    try:
        return now - timedelta(seconds=parse_duration_s(text))
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise click.UsageError(f"'@{text}' is no duration and no time ({error})") from error
