"""The texts of wrong settings and arguments; rules as in ``texts.py``.

``source`` or ``origin`` says where it stands: ``tailrace.toml:12``, ``--set topic.retention``,
``TAILRACE_STORAGE__DATA_DIR``, ``tailrace.connect()``, ``URL``.
"""

from typing import Literal

from tailrace.protocol import errors
from tailrace.protocol.texts import shown


def setting_unknown(origin: str, key: str, *, similar: str | None = None) -> errors.ConfigError:
    """T080. ``similar``: the nearest key that exists."""
    return errors.ConfigError(
        "T080",
        f"{shown(origin)}: {shown(key)} unknown",
        f"Did you mean {shown(similar)}?" if similar else "List all keys: tailrace config show",
        key=key,
        source=origin,
    )


def setting_of_broker(origin: str, given: str, *, key: str) -> errors.ConfigError:
    """T080: given for a topic, but it is one of the broker's: ``key``."""
    return errors.ConfigError(
        "T080",
        f"{shown(origin)}: {shown(given)} unknown",
        f"{key} is a setting of the broker, not of topics: tailrace config explain {key}",
        key=given,
        source=origin,
    )


def setting_later(origin: str, key: str, *, release: str) -> errors.ConfigError:
    """T080: a reserved key. ``release``: what it comes with, "client certificates"."""
    return errors.ConfigError(
        "T080",
        f"{shown(origin)}: {shown(key)} unknown",
        f"Remove it: it comes with a later release ({release}).",
        key=key,
        source=origin,
    )


def value_later(origin: str, key: str, *, value: str, release: str) -> errors.ConfigError:
    """T086: a reserved value of a key that exists. ``release``: what it comes with."""
    return errors.ConfigError(
        "T086",
        f"{shown(origin)}: {shown(key)} = '{shown(value)}' comes with a later release ({release})",
        f"Look: tailrace config explain {shown(key)}",
        key=key,
        source=origin,
    )


def setting_invalid(origin: str, key: str, *, value: str, wanted: str) -> errors.ConfigError:
    """T082. ``value`` as it was written; ``wanted`` continues "is not …": "a duration"."""
    return errors.ConfigError(
        "T082",
        f"{shown(origin)}: {shown(key)} = {shown(value)} is not {wanted}",
        f"Look: tailrace config explain {shown(key)}",
        key=key,
        source=origin,
    )


def settings_contradict(key: str, *, origin: str, problem: str, hint: str) -> errors.ConfigError:
    """T082 for values that do not go together. ``problem``: "replicas 3 > 1 broker"."""
    return errors.ConfigError(
        "T082", f"{shown(origin)}: {shown(problem)}", hint, key=key, source=origin
    )


def not_an_assignment(option: str, given: str) -> errors.ConfigError:
    """T082 for ``--set`` without ``=``."""
    return errors.ConfigError(
        "T082",
        f"{option} {shown(given)} is not KEY=VALUE",
        f"Use, for example: {option} topic.retention=7d",
        source=option,
    )


def file_unreadable(path: str, *, reason: str) -> errors.ConfigError:
    """T082: the configuration, a certificate or a token file. ``reason``: the system's."""
    return errors.ConfigError(
        "T082",
        f"{shown(path)} cannot be read: {shown(reason)}",
        "Check the path and its permissions.",
        source=path,
    )


def file_invalid(source: str, *, reason: str) -> errors.ConfigError:
    """T082: not TOML. ``source``: path, or path:line."""
    return errors.ConfigError(
        "T082",
        f"{shown(source)} is not valid TOML: {shown(reason)}",
        "Compare with: tailrace config init",
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


def compacted_dropping(*, source: str) -> errors.ConfigError:
    """T083."""
    return errors.ConfigError(
        "T083",
        f"{shown(source)}: on_full 'drop_oldest' with cleanup 'compact': the newest record of a "
        "key would go with the oldest segment",
        "Set on_full = 'reject', or cleanup = 'compact,delete'.",
        key="on_full",
        source=source,
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
