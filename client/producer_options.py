"""The arguments of ``Client.producer``, checked together."""

import math
from dataclasses import dataclass, fields

from tailrace.client.accumulator import WINDOW
from tailrace.client.records import Acks
from tailrace.protocol import texts_config
from tailrace.protocol.batch import BATCH_LENGTH_MAX, Compression
from tailrace.protocol.errors import ConfigError

CALL = "client.producer()"
_SECONDS = ("linger", "timeout", "close_timeout")
_BATCH_BYTES_MAX = BATCH_LENGTH_MAX // 2  # a document has bytes of its own beside the records


@dataclass(frozen=True, slots=True)
class ProducerOptions:
    """What a producer was asked for; durations in seconds."""

    acks: Acks
    idempotent: bool
    linger: float
    batch_bytes: int
    compression: Compression
    buffer_bytes: int
    max_in_flight: int
    timeout: float
    close_timeout: float


def checked(options: ProducerOptions) -> ProducerOptions:
    """The options, or ConfigError T082 for a value that cannot be or a contradiction."""
    for field in fields(options):
        if field.name in _SECONDS:
            _check_seconds(field.name, getattr(options, field.name))
    _check_choice("acks", options.acks, ("all", 1, 0))
    _check_choice("idempotent", options.idempotent, (True, False))
    _check_choice("compression", options.compression, ("lz4", "zstd", "none"))
    _check_count("batch_bytes", options.batch_bytes, _BATCH_BYTES_MAX)
    _check_count("buffer_bytes", options.buffer_bytes, 1 << 40)
    _check_count("max_in_flight", options.max_in_flight, WINDOW if options.idempotent else 100)
    if options.acks != "all" and options.idempotent:
        raise _bad(
            *("acks", options.acks, '"all" while idempotent'),
            "Pass idempotent=False too: then a retry can make a duplicate.",
        )
    return options


def _check_seconds(key: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    low = 0 if key == "linger" else 1e-9
    if not number or not low <= value < math.inf:  # type: ignore[operator]
        raise _bad(key, value, f"a number of seconds {'from' if low == 0 else 'above'} 0", "")


def _check_count(key: str, value: object, high: int) -> None:
    if type(value) is not int or not 1 <= value <= high:
        raise _bad(key, value, f"an integer from 1 to {high:,}", "")


def _check_choice(key: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise _bad(key, value, " or ".join(map(repr, allowed)), "")


def _bad(key: str, value: object, expected: str, hint: str) -> ConfigError:
    return texts_config.bad_argument(
        key, value, call=CALL, expected=expected, hint=hint or "Leave it out for the default."
    )
