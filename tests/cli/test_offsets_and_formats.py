"""The OFFSET and FORMAT arguments of consume."""

from datetime import UTC, datetime, timedelta

import click
import pytest

from tailrace.client.cli_format import compile_format
from tailrace.client.cli_offsets import parse_range
from tailrace.protocol.positions import Position

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("start", (Position("start"), None)),
        ("end", (Position("end"), None)),
        ("17", (Position("offset", 17), None)),
        ("-5", (Position("back", 5), None)),
        ("3:9", (Position("offset", 3), Position("offset", 9))),
        ("start:-1", (Position("start"), Position("back", 1))),
        ("@2h", (Position("time", time=NOW - timedelta(hours=2)), None)),
        (
            "@2026-11-20T10:00Z:@1h",
            (
                Position("time", time=datetime(2026, 11, 20, 10, tzinfo=UTC)),
                Position("time", time=NOW - timedelta(hours=1)),
            ),
        ),
        (
            "@2026-11-20T10:00+02:00",
            (Position("time", time=datetime(2026, 11, 20, 8, tzinfo=UTC)), None),
        ),
    ],
)
def test_offsets_are_understood(text: str, expected: tuple[Position, Position | None]) -> None:
    assert parse_range(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "later", "1.5", "@soon", "--3", "committed"])
def test_what_is_no_offset_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(click.UsageError):
        parse_range(text, NOW)


@pytest.mark.parametrize("text", ["%x", "%", "%o{hex}", "%v{rot13}"])
def test_unknown_directives_are_refused(text: str) -> None:
    with pytest.raises(click.UsageError):
        compile_format(text)
