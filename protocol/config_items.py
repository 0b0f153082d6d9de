"""Settings as users give them, on their way to a broker, which reads text with a unit (pure)."""

import math
from collections.abc import Mapping

from tailrace.protocol import texts_config
from tailrace.protocol.messages_admin import ConfigChange, ConfigItem
from tailrace.protocol.units import BARE_UNITS

ConfigValue = str | int | float | bool  # "7d" or 604800 (seconds), "1MiB" or 1048576 (bytes)


def config_items(config: Mapping[str, ConfigValue]) -> tuple[ConfigItem, ...]:
    """For a new topic. Raises ConfigError T082."""
    return tuple(ConfigItem(key, config_text(key, value)) for key, value in config.items())


def config_changes(config: Mapping[str, ConfigValue | None]) -> tuple[ConfigChange, ...]:
    """For a topic that there is; None takes a setting back to its default. ConfigError T082."""
    return tuple(
        ConfigChange(key, None if value is None else config_text(key, value))
        for key, value in config.items()
    )


def config_text(key: str, value: ConfigValue) -> str:
    """As the broker reads it: a number gets the unit of its key, a text must have one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    try:
        finite = math.isfinite(value)
    except TypeError:
        raise texts_config.bad_argument(
            *(key, value), call="config", expected="text or a number", hint="Example: 'compact'."
        ) from None
    except OverflowError:
        finite = False
    if not finite:
        raise texts_config.bad_argument(
            key, value, call="config", expected="a finite number", hint="Use 'forever'."
        )
    number = str(int(value)) if value == int(value) else str(value)
    return number + BARE_UNITS.get(key, "")
