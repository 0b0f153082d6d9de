"""The OFFSET argument of ``consume``: where to start and, for ``FROM:TO``, where to stop."""

from datetime import datetime

import click

from tailrace.protocol import positions
from tailrace.protocol.positions import FORMS, Position

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
    if text == "committed":
        raise click.UsageError("'committed' is where a member of a group begins: consume -g GROUP")
    try:
        return positions.parse_position(text, now, forms=forms)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
