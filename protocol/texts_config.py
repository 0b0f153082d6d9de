"""The texts of wrong settings and arguments; rules as in ``texts.py``.

``source`` says where the setting stands: ``tailrace.toml:12``, ``TAILRACE_STORAGE__DATA_DIR``,
``--set``, ``tailrace.connect()``, ``URL``.
"""

from typing import Literal

from tailrace.protocol import errors
from tailrace.protocol.texts import shown


def unknown_key(key: str, *, source: str, similar: str | None = None) -> errors.ConfigError:
    """T080. ``similar``: the nearest key that exists."""
    return errors.ConfigError(
        "T080",
        f"{shown(source)}: {shown(key)} unknown",
        f"Did you mean {shown(similar)}?" if similar else "List all keys: tailrace config show",
        key=key,
        source=source,
    )


def min_isr_above_replicas(*, source: str, min_isr: int, replicas: int) -> errors.ConfigError:
    """T081."""
    return errors.ConfigError(
        "T081",
        f"{shown(source)}: min_isr {min_isr} > replicas {replicas}: no write with acks=all could "
        "ever succeed",
        "Lower min_isr or raise replicas.",
        key="min_isr",
        source=source,
    )


def bad_value(
    key: str, value: object, *, source: str, expected: str, hint: str = ""
) -> errors.ConfigError:
    """T082. ``expected`` continues "is not …": "a duration such as 7d"."""
    return errors.ConfigError(
        "T082",
        f"{shown(source)}: {shown(key)} = {shown(repr(value))} is not {expected}",
        hint or f"Look: tailrace config explain {shown(key)}",
        key=key,
        source=source,
    )


def bad_combination(key: str, *, source: str, problem: str, hint: str) -> errors.ConfigError:
    """T082 for values that contradict each other. ``problem``: "max_record 1 MiB + 64 KiB > …"."""
    return errors.ConfigError(
        "T082", f"{shown(source)}: {shown(problem)}", hint, key=key, source=source
    )


def bad_argument(
    key: str, value: object, *, call: str, expected: str, hint: str
) -> errors.ConfigError:
    """T082 in the SDK. ``call``: "client.producer()", ``expected`` continues "must be …"."""
    return errors.ConfigError(
        "T082",
        f"{call}: {key}={shown(repr(value))} must be {expected}",
        hint,
        key=key,
        source=call,
    )


def replicated_alone(*, source: str) -> errors.ConfigError:
    """T083."""
    return errors.ConfigError(
        "T083",
        f"{shown(source)}: durability 'replicated' with 1 replica: a crash would lose what was "
        "acknowledged",
        "Set durability = 'fsync', or raise replicas.",
        key="durability",
        source=source,
    )


def needs_server(command: str) -> errors.ConfigError:
    """T084. ``command``: "tailrace dev"."""
    return errors.ConfigError(
        "T084",
        f"'{command}' needs the server",
        "Install it: pip install 'tailrace[server]'",
        key=command,
    )


def insecure_bind(
    listener: str,
    address: str,
    *,
    without: Literal["TLS", "a token"],
    key: str,
    source: str | None = None,
) -> errors.ConfigError:
    """T085. ``key``: the setting that would mend it: "listeners.client.tls", "http.token_file"."""
    return errors.ConfigError(
        "T085",
        f"{shown(listener)} binds {shown(address)} without {without}",
        f"Set {key}, bind 127.0.0.1, or security.allow_insecure = true.",
        key=key,
        source=source,
    )


def comes_later(
    what: str, *, hint: str = "See what there is: tailrace --help"
) -> errors.ConfigError:
    """T086: a reserved name. ``what``: "tailrace queue", "cleanup = \\"compact\\""."""
    return errors.ConfigError(
        "T086", f"{shown(what)} is reserved for a later release", hint, key=what
    )
