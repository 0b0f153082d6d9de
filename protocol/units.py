"""Numbers with units, in both directions: settings are parsed, texts are written.

Settings: durations ``^\\d+(\\.\\d+)?(ms|s|m|h|d|w)$`` or ``forever``; sizes
``^\\d+(\\.\\d+)?(B|kB|KiB|MB|MiB|GB|GiB|TB|TiB)$`` or ``unlimited``. Texts: ``117,020``,
``3.4 MiB``, ``41 s``. Parsing raises ``ValueError`` with a reason; it never guesses a unit.
"""

import math
import re
from fractions import Fraction

FOREVER = "forever"
UNLIMITED = "unlimited"

# The unit of a bare number that Python gives for a setting of a topic; as text it needs its own.
BARE_UNITS = {
    **dict.fromkeys(("retention", "segment_age", "timestamp_ahead_max"), "s"),
    **dict.fromkeys(("compaction_lag_max", "tombstone_retention"), "s"),
    **dict.fromkeys(("retention_size", "segment_size", "max_record"), "B"),
}

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(B|kB|KiB|MB|MiB|GB|GiB|TB|TiB)")
_MS_PER = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_BYTES_PER = {
    **{"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10},
    **{"TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3, "B": 1},
}
_TEXT_MAX = 32  # longer than any sensible number; bounds the arithmetic on hostile input
_SIZE_MAX = (1 << 63) - 1


def parse_duration_s(text: str) -> float:
    """Seconds, ``math.inf`` for "forever"; ValueError says what was expected."""
    if text == FOREVER:
        return math.inf
    found = _DURATION.fullmatch(text) if len(text) <= _TEXT_MAX else None
    if found is None:
        raise ValueError("a number with ms, s, m, h, d or w, or 'forever'")
    return float(Fraction(found[1]) * _MS_PER[found[2]] / 1000)


def parse_size_bytes(text: str) -> int | None:
    """Bytes, None for "unlimited"; ValueError says what was expected."""
    if text == UNLIMITED:
        return None
    found = _SIZE.fullmatch(text) if len(text) <= _TEXT_MAX else None
    if found is None:
        raise ValueError("a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB, or 'unlimited'")
    size = Fraction(found[1]) * _BYTES_PER[found[2]]
    if size.denominator != 1 or size > _SIZE_MAX:
        raise ValueError(f"a whole number of bytes up to {_SIZE_MAX}")
    return int(size)


def duration_setting(seconds: float) -> str:
    """The shortest exact setting: 604800 is "7d", 90 is "90s", ``math.inf`` is "forever"."""
    if math.isinf(seconds):
        return FOREVER
    ms = round(seconds * 1000)
    if ms == 0:
        return "0s"
    unit = next(u for u, per in _MS_PER.items() if u != "w" and ms % per == 0)
    return f"{ms // _MS_PER[unit]}{unit}"


def size_setting(size_bytes: int | None) -> str:
    """The shortest exact setting: 1048576 is "1MiB", 1000 is "1000B", None is "unlimited"."""
    if size_bytes is None:
        return UNLIMITED
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _BYTES_PER[unit] == 0:
            return f"{size_bytes // _BYTES_PER[unit]}{unit}"
    return f"{size_bytes}B"


def size_setting_above(size_bytes: int) -> str:
    """The next whole KiB (MiB from 1 MiB on) that holds so many bytes, as a setting."""
    unit = "MiB" if size_bytes > 1 << 20 else "KiB"
    return size_setting(-(-size_bytes // _BYTES_PER[unit]) * _BYTES_PER[unit])


def format_count(number: int) -> str:
    """``117,020``."""
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """``1 record``, ``117,020 records``."""
    return f"{format_count(number)} {noun}{'' if number == 1 else 's'}"


def format_seconds(seconds: float) -> str:
    """The number alone: "41", "0.3", "0.05", "1,200"; whole from 10 s on, else to 0.1 s."""
    if math.isinf(seconds):
        return FOREVER
    if abs(seconds) >= 9.95:
        return f"{round(seconds):,}"
    digits = 1 if abs(seconds) >= 0.095 else 3
    text = f"{seconds:.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text in ("", "-0") else text


def format_duration(seconds: float) -> str:
    """For people: "0.3 s", "41 s", "1,200 s", "forever"."""
    return FOREVER if math.isinf(seconds) else f"{format_seconds(seconds)} s"


def format_size(size_bytes: int | None) -> str:
    """For people: "512 B", "3.4 MiB", "410 MiB", "unlimited"; one decimal below 10."""
    if size_bytes is None:
        return UNLIMITED
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        amount = size_bytes / _BYTES_PER[unit]
        if amount >= 0.9995:  # so that 1,023.6 KiB reads as 1 MiB, never as 1,024 KiB
            return f"{_short(amount)} {unit}"
    return f"{size_bytes:,} B"


def _short(amount: float) -> str:
    if amount >= 9.95:
        return f"{round(amount):,}"
    return f"{amount:.1f}".removesuffix(".0")
