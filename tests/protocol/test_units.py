"""Numbers with units: every setting parses exactly, and what is written reads back."""

import math

import pytest
from hypothesis import given, strategies as st

from tailrace.protocol.units import (
    duration_setting,
    format_count,
    format_duration,
    format_seconds,
    format_size,
    parse_duration_s,
    parse_size_bytes,
    size_setting,
    size_setting_above,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("200ms", 0.2),
        ("0ms", 0.0),
        ("1s", 1.0),
        ("1.5s", 1.5),
        ("10m", 600.0),
        ("24h", 86_400.0),
        ("7d", 604_800.0),
        ("2w", 1_209_600.0),
        ("0.1s", 0.1),
        ("forever", math.inf),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("512B", 512),
        ("1kB", 1_000),
        ("1KiB", 1_024),
        ("1.5MiB", 1_572_864),
        ("3MB", 3_000_000),
        ("2GiB", 2 << 30),
        ("1GB", 10**9),
        ("1TiB", 1 << 40),
        ("1TB", 10**12),
        ("0.001kB", 1),
        ("unlimited", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "7 d",
        " 7d",
        "7D",
        "d",
        "-1s",
        "+1s",
        "1e3s",
        ".5s",
        "1.s",
        "1_0s",
        "7d\n",
        "\u0667d",
        "1h30m",
        "inf",
        "nan",
        "Forever",
        "unlimited",
        "9" * 40 + "s",
        "1min",
    ],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="a number with ms, s, m, h, d or w, or 'forever'"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    "text", ["", "1", "1 MiB", "1mib", "1M", "1K", "KiB", "-1B", "1e3B", "1,000B", "forever"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="a number with B, KiB"):
        parse_size_bytes(text)


@pytest.mark.parametrize("text", ["1.5B", "0.0001kB", "9223372036854775808B", "99999999TiB"])
def test_sizes_are_whole_and_of_63_bits(text: str) -> None:
    with pytest.raises(ValueError, match="a whole number of bytes up to 9223372036854775807"):
        parse_size_bytes(text)


@given(st.integers(0, (1 << 63) - 1))
def test_a_size_reads_back(size: int) -> None:
    assert parse_size_bytes(size_setting(size)) == size


@given(st.integers(0, 10**12))
def test_a_duration_reads_back(ms: int) -> None:
    assert parse_duration_s(duration_setting(ms / 1000)) == ms / 1000


@given(st.integers(1, 1 << 40))
def test_the_size_above_holds_the_size(size: int) -> None:
    above = parse_size_bytes(size_setting_above(size))
    assert above is not None
    assert size <= above < size + (1 << 20)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (604800, "7d"),
        (86400, "1d"),
        (3600, "1h"),
        (90, "90s"),
        (0.2, "200ms"),
        (0, "0s"),
        (math.inf, "forever"),
    ],
)
def test_the_shortest_duration_setting(seconds: float, text: str) -> None:
    assert duration_setting(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(1 << 20, "1MiB"), (1_000, "1000B"), (0, "0B"), (134_217_728, "128MiB"), (None, "unlimited")],
)
def test_the_shortest_size_setting(size: int | None, text: str) -> None:
    assert size_setting(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1_000, "1,000 B"),
        (1_023, "1,023 B"),
        (1_024, "1 KiB"),
        (1_536, "1.5 KiB"),
        ((1 << 20) - 1, "1 MiB"),
        (3_565_158, "3.4 MiB"),
        (429_916_160, "410 MiB"),
        (1_288_490_188, "1.2 GiB"),
        (5 << 50, "5,120 TiB"),
        (None, "unlimited"),
    ],
)
def test_sizes_for_people(size: int | None, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (0.0001, "0"),
        (0.001, "0.001"),
        (0.05, "0.05"),
        (0.1, "0.1"),
        (0.25, "0.2"),
        (0.4, "0.4"),
        (5.0, "5"),
        (9.94, "9.9"),
        (9.96, "10"),
        (41.3, "41"),
        (1200, "1,200"),
        (-3.2, "-3.2"),
        (-1e-05, "0"),
        (math.inf, "forever"),
    ],
)
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_durations_and_counts_for_people() -> None:
    assert format_duration(41) == "41 s"
    assert format_duration(math.inf) == "forever"
    assert format_count(117_020) == "117,020"
