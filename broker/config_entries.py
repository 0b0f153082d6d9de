"""Settings as ``tailrace config show`` and HTTP show them (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass

from tailrace.broker.config_values import Value
from tailrace.protocol.shapes import ConfigEntry


@dataclass(frozen=True)
class ConfigSetting(ConfigEntry):
    """One setting of a broker."""

    origin: str  # where it is written: file:line, variable or option


def settings_of(values: Mapping[str, Value]) -> list[ConfigSetting]:
    """All of them, sorted by key. None holds a secret: tokens and keys stand in files of their own,
    whose names are shown."""
    return [setting_of(values[key]) for key in sorted(values)]


def setting_of(value: Value) -> ConfigSetting:
    """One of them."""
    return ConfigSetting(
        key=value.key,
        value=value.text,
        default=value.default,
        source=value.source,
        dynamic=value.setting.dynamic,
        origin=value.origin,
    )
