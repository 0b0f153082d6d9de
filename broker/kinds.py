"""How values of settings are written: parsing with bounds, and one canonical text for each.

Invariant: ``kind.parse(kind.text(value)) == value``, and a value has one canonical text (``60m``
is ``1h``), so that texts can be compared and a value that is shown can be typed in again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple

from tailrace.protocol.units import (
    FOREVER,
    UNLIMITED,
    duration_setting,
    parse_duration_s,
    parse_size_bytes,
    size_setting,
)

AUTO = "auto"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Address(NamedTuple):
    """A host (name or IP, without brackets) and a port; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of the machine."""
        try:
            return ip_address(self.host).is_unspecified
        except ValueError:
            return False


class Free(NamedTuple):
    """How much room must stay free: bytes, or else a share of the file system (0 to 1)."""

    size_bytes: int | None
    share: float | None

    def bytes_of(self, total_bytes: int) -> int:
        """In bytes, on a file system of that size."""
        if self.size_bytes is not None:
            return self.size_bytes
        return int(total_bytes * (self.share or 0.0))


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is written. ``parse`` raises ValueError saying what it wants."""

    name: str
    parse: Callable[[str], Any]
    text: Callable[[Any], str]  # canonical: parse(text(value)) == value
    toml: tuple[type, ...] = ()  # what TOML may hold besides text
    bare_unit: str = ""  # what a bare number from Python means: "s", "B"


def _check(good: bool, wanted: str) -> None:
    if not good:
        raise ValueError(wanted)


def text_of(pattern_doc: str = "", accept: Callable[[str], bool] = lambda _: True) -> Kind:
    def parse(text: str) -> str:
        _check(accept(text), pattern_doc)
        return text

    return Kind("text", parse, str)


def choice(*values: str) -> Kind:
    def parse(text: str) -> str:
        _check(text in values, f"one of {', '.join(values)}")
        return text

    return Kind(" | ".join(values), parse, str)


def whole(low: int, high: int, *, or_auto: bool = False) -> Kind:
    wanted = f"a whole number from {low:,} to {high:,}{f', or {AUTO}' if or_auto else ''}"

    def parse(text: str) -> int | None:
        if or_auto and text == AUTO:
            return None
        digits = text.isascii() and text.isdigit() and len(text) < 20
        _check(digits and low <= int(text) <= high, wanted)
        return int(text)

    def show(value: int | None) -> str:
        return AUTO if value is None else str(value)

    if or_auto:
        return Kind("number | auto", parse, show, (int,))
    return Kind("number", parse, show, (int,))


def _bool(text: str) -> bool:
    _check(text in ("true", "false"), "true or false")
    return text == "true"


def duration(low_s: float = 0.001, *, or_forever: bool = False) -> Kind:
    wanted = f'a duration such as "30s" or "1.5h", at least {duration_setting(low_s)}'
    wanted += f', or "{FOREVER}"' if or_forever else ""

    def parse(text: str) -> float:
        try:
            value = parse_duration_s(text)
        except ValueError:
            raise ValueError(wanted) from None
        _check(value >= low_s and (or_forever or value != math.inf), wanted)
        return value

    name = "duration | forever" if or_forever else "duration"
    return Kind(name, parse, duration_setting, bare_unit="s")


def size(low: int, high: int | None = None, *, or_unlimited: bool = False) -> Kind:
    bounds = f"at least {size_setting(low)}" + (
        "" if high is None else f", at most {size_setting(high)}"
    )
    wanted = f'a size such as "64MiB" or "1GB", {bounds}'
    wanted += f', or "{UNLIMITED}"' if or_unlimited else ""

    def parse(text: str) -> int | None:
        try:
            value = parse_size_bytes(text)
        except ValueError:
            raise ValueError(wanted) from None
        if value is None:
            _check(or_unlimited, wanted)
        else:
            _check(low <= value and (high is None or value <= high), wanted)
        return value

    return Kind("size | unlimited" if or_unlimited else "size", parse, size_setting, bare_unit="B")


def ratio() -> Kind:
    wanted = "a share from 0 to 1 such as 0.5"

    def parse(text: str) -> float:
        plain = text.isascii() and text.replace(".", "", 1).isdigit() and len(text) < 20
        _check(plain and 0 <= float(text) <= 1, wanted)
        return round(float(text), 4)

    return Kind("share", parse, lambda value: f"{value:g}", (int, float))


def parse_address(text: str) -> Address:
    """Host and port; ValueError says what it wants."""
    wanted = 'an address such as "127.0.0.1:7400" or "[::1]:7400"'
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        _check(":" in host, wanted)
    else:
        _check(":" not in host, wanted)
    good = colon and host and not any(character.isspace() for character in host)
    _check(bool(good) and port.isascii() and port.isdigit() and int(port) <= 65535, wanted)
    return Address(host, int(port))


def _address_or_empty(text: str) -> Address | None:
    return parse_address(text) if text else None


def _free(text: str) -> Free:
    wanted = 'a share such as "5%" or a size such as "10GiB"'
    try:
        if text.endswith("%"):
            _check(text[:-1].replace(".", "", 1).isdigit() and text.isascii(), wanted)
            share = float(text[:-1]) / 100
            _check(share < 1, wanted)
            return Free(None, share)
        size = parse_size_bytes(text)
    except ValueError:
        raise ValueError(wanted) from None
    _check(size is not None, wanted)
    return Free(size, None)


def _free_text(free: Free) -> str:
    if free.size_bytes is not None:
        return size_setting(free.size_bytes)
    return f"{(free.share or 0.0) * 100:g}%"


def is_id(text: str) -> bool:
    """The rule for broker ids; listener names keep to it too, without the dots."""
    return 1 <= len(text) <= 64 and all(c.isascii() and (c.isalnum() or c in "._-") for c in text)


def _urls(text: str) -> tuple[str, ...]:
    wanted = 'addresses such as ["http://10.0.0.1:2379", "http://10.0.0.2:2379"]'
    urls = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    for url in urls:
        scheme, _, address = url.partition("://")
        _check(scheme in ("http", "https") and "@" not in address, wanted)
        try:
            _check(parse_address(address).port > 0, wanted)
        except ValueError:
            raise ValueError(wanted) from None
    _check(len(set(urls)) == len(urls), f"{wanted}, each once")
    return urls


def _prefix(text: str) -> bool:
    parts = text.split("/")
    return len(text) <= 255 and len(parts) > 1 and parts[0] == "" and all(map(is_id, parts[1:]))


TEXT = text_of()
URLS = Kind("addresses", _urls, ",".join, (list,))
PREFIX = text_of('a path such as "/tailrace", of letters, digits, ".", "_", "-" and "/"', _prefix)
BOOL = Kind("true | false", _bool, lambda value: "true" if value else "false", (bool,))
ADDRESS = Kind("address", parse_address, str)
ADDRESS_OR_EMPTY = Kind("address", _address_or_empty, lambda value: str(value or ""))
FREE = Kind("share | size", _free, _free_text)
