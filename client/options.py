"""What ``connect()`` was asked for: addresses, limits of time, TLS."""

import difflib
import ipaddress
import math
import os
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qsl

from tailrace.protocol import texts, texts_config

DEFAULT_URL = "tailrace://localhost:7400"
DEFAULT_PORT = 7400
CALL = "tailrace.connect()"
_SCHEMES = {"tailrace": False, "tailraces": True}
_SECONDS = {"connect_timeout": 5.0, "request_timeout": 10.0, "close_timeout": 10.0}
_KNOWN = ("client_id", "tls", *_SECONDS, "max_outage", "rack")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


class Address(NamedTuple):
    """Where a broker listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """The arguments of ``connect()``, checked; durations in seconds."""

    addresses: tuple[Address, ...]
    client_id: str
    tls: ssl.SSLContext | None
    connect_timeout: float = _SECONDS["connect_timeout"]
    request_timeout: float = _SECONDS["request_timeout"]
    close_timeout: float = _SECONDS["close_timeout"]
    max_outage: float | None = None  # None: reconnect for ever
    rack: str | None = None  # where the client is; None: only leaders are read from


def resolve(
    url: str | Sequence[str] | None,
    *,
    client_id: str | None,
    tls: bool | ssl.SSLContext | None,
    connect_timeout: float,
    request_timeout: float,
    max_outage: float | None,
    close_timeout: float,
    rack: str | None = None,
) -> ClientOptions:
    """Arguments and URL put together; an argument that is not at its default beats the URL.

    Raises ConfigError T080 for an unknown URL option, T082 for a bad value or URL, and
    InvalidName T013 for a client id nobody could read in a log.
    """
    if url is None:
        url = os.environ.get("TAILRACE_URL") or DEFAULT_URL
    urls = [url] if isinstance(url, str) else list(url)
    if not urls:
        raise _bad("url", url, "at least one address", "Example: tailrace://localhost:7400")
    parsed = [parse_url(one) for one in urls]
    asked: dict[str, str] = {}
    for one in parsed:
        asked.update(one.options)
    given = {
        "connect_timeout": connect_timeout,
        "request_timeout": request_timeout,
        "close_timeout": close_timeout,
        "max_outage": max_outage,
    }
    seconds: dict[str, float | None] = {}
    for key, value in given.items():
        if value == _SECONDS.get(key) and key in asked:
            value = _number(key, asked[key])
        seconds[key] = _positive(key, value)
    name = client_id or asked.get("client_id") or _program_and_pid()
    if not 1 <= len(name) <= 255 or not name.isprintable():
        raise texts.invalid_id("client id", name)
    rack = rack if rack is not None else asked.get("rack")
    if rack is not None and not (1 <= len(rack) <= 255 and rack.isprintable()):
        raise _bad("rack", rack, "1-255 printable characters", "Example: rack='eu-west-1a'")
    if tls is None and "tls" in asked:
        tls = _boolean("tls", asked["tls"])
    addresses = tuple(dict.fromkeys(a for one in parsed for a in one.addresses))
    return ClientOptions(
        addresses=addresses,
        client_id=name,
        tls=_context(tls, {one.tls for one in parsed}),
        connect_timeout=seconds["connect_timeout"] or 0.0,
        request_timeout=seconds["request_timeout"] or 0.0,
        close_timeout=seconds["close_timeout"] or 0.0,
        max_outage=seconds["max_outage"],
        rack=rack,
    )


@dataclass(frozen=True, slots=True)
class ParsedUrl:
    """One URL taken apart."""

    tls: bool
    addresses: tuple[Address, ...]
    options: dict[str, str]


def parse_url(url: str) -> ParsedUrl:
    """``tailrace://host[:7400][,host[:port]...][?option=value]``; ConfigError T080 or T082."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "tailrace", url
    if scheme not in _SCHEMES:
        raise _bad("url", url, "a tailrace:// or tailraces:// URL", f"Try: {DEFAULT_URL}")
    hosts, _, query = rest.partition("?")
    hosts = hosts.removesuffix("/")
    options: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _KNOWN:
            similar = difflib.get_close_matches(key, _KNOWN, 1)
            raise texts_config.setting_unknown(url, key, similar=similar[0] if similar else None)
        options[key] = value
    addresses = tuple(_address(url, part) for part in hosts.split(","))
    return ParsedUrl(_SCHEMES[scheme], addresses, options)


def _address(url: str, text: str) -> Address:
    """``host``, ``host:port``, ``[v6]`` or ``[v6]:port``."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port_text = rest.removeprefix(":")
        valid = _is_ip6(host) and (not rest or rest.startswith(":"))
    else:
        host, _, port_text = text.partition(":")
        valid = bool(host) and host.isprintable() and not set(host) & set("/@ []#")
    port = int(port_text) if port_text.isascii() and port_text.isdigit() else DEFAULT_PORT
    if not valid or (port_text and str(port) != port_text) or not 0 < port <= 65_535:
        raise _bad("url", url, "tailrace://host[:port][,host[:port]...]", f"Try: {DEFAULT_URL}")
    return Address(host, port)


def _is_ip6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _context(tls: bool | ssl.SSLContext | None, schemes: set[bool]) -> ssl.SSLContext | None:
    if len(schemes) > 1:
        raise _bad("url", "tailrace:// and tailraces://", "of one scheme", "Use one of the two.")
    if tls is None:
        tls = schemes.pop()
    elif tls is False and True in schemes:
        raise _bad("tls", False, "True for a tailraces:// URL", "Use tailrace:// without TLS.")
    if isinstance(tls, bool):
        return ssl.create_default_context() if tls else None
    return tls


def _program_and_pid() -> str:
    program = os.path.basename(sys.argv[0] if sys.argv else "") or "python"
    program = "".join(c for c in program if c.isprintable())[:200] or "python"
    return f"{program}-{os.getpid()}"


def _positive(key: str, value: float | None) -> float | None:
    if value is None and key == "max_outage":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise _bad(key, value, "a number of seconds above 0", "Example: 5.0")
    return float(value)


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _bad(key, text, "a number of seconds above 0", "Example: 5.0") from None


def _boolean(key: str, text: str) -> bool:
    if text not in _BOOLEANS:
        raise _bad(key, text, "true or false", "Or use the scheme tailraces://.")
    return _BOOLEANS[text]


def _bad(key: str, value: object, expected: str, hint: str) -> Exception:
    return texts_config.bad_argument(key, value, call=CALL, expected=expected, hint=hint)
