"""Settings of single topics: what was given for one, over the broker's [topic] section.

A topic keeps only what was set for it, as canonical texts by name (``{"retention": "7d"}``), so
that a change of the broker's defaults reaches every topic that did not say otherwise.
"""

from collections.abc import Mapping

from tailrace.broker.catalog import Topic
from tailrace.broker.config import Config, TopicConfig, build_topic
from tailrace.broker.config_check import check_topic
from tailrace.broker.config_values import Value, parse_value
from tailrace.broker.settings import SETTINGS, Setting
from tailrace.protocol import texts_config as texts
from tailrace.protocol.messages_admin import ConfigEntry

INTERNAL = {
    "cleanup": "compact",
    "durability": "fsync",
    "max_record": "16MiB",  # a group of 10,000 members takes one
    "on_full": "reject",
    "segment_size": "16MiB",  # what lies in the newest one is replayed as it was written
    "tombstone_retention": "1h",  # whoever reads it reads all of it
}
NAMES = {s.name: s for s in SETTINGS.values() if s.per_topic}


def parse_overrides(topic: str, given: Mapping[str, str]) -> dict[str, str]:
    """Canonical texts of what was given for a topic; ConfigError T080, T082 or T086.

    A bare number is no duration and no size (T082): the SDK gives numbers their unit.
    """
    overrides: dict[str, str] = {}
    source = f"topic '{topic}'"
    for name, text in given.items():
        setting = _setting(source, name)
        overrides[name], _ = parse_value(setting, name, text, source)
    return overrides


def internal(topic: str) -> dict[str, str]:
    """What a topic of the broker's own is made with, whatever its [topic] section says."""
    return parse_overrides(topic, INTERNAL)


def apply_changes(
    topic: str, overrides: Mapping[str, str], changes: Mapping[str, str | None]
) -> dict[str, str]:
    """The overrides after a change; None takes a setting back to the broker's default."""
    for name in changes:
        _setting(f"topic '{topic}'", name)
    changed = parse_overrides(topic, {k: v for k, v in changes.items() if v is not None})
    kept = {name: text for name, text in overrides.items() if name not in changes}
    return {**kept, **changed}


def effective(
    topic: str,
    config: Config,
    overrides: Mapping[str, str],
    *,
    partitions: int | None = None,
    replicas: int | None = None,
) -> TopicConfig:
    """What holds for a topic, right or wrong: defaults may have changed since it was made.

    ``partitions`` and ``replicas`` are the topic's own; None: the broker's defaults.
    """
    return build_topic(_effective(topic, config, overrides, partitions, replicas))


def of_topic(config: Config, topic: Topic) -> TopicConfig:
    """What holds for a topic, by this configuration of a broker."""
    partitions, replicas = len(topic.partitions), topic.replicas
    return effective(topic.name, config, topic.config, partitions=partitions, replicas=replicas)


def checked(
    topic: str,
    config: Config,
    overrides: Mapping[str, str],
    *,
    partitions: int | None = None,
    replicas: int | None = None,
    brokers: int | None = None,
) -> TopicConfig:
    """As ``effective``; ConfigError T081-T083 if the settings contradict each other.

    ``brokers``: that could hold a new topic; None: the topic is there.
    """
    values = _effective(topic, config, overrides, partitions, replicas)
    limit = config.limits.request_size_bytes
    for error in check_topic(values, request_size_bytes=limit, brokers=brokers):
        raise error
    return build_topic(values)


def entries(topic: str, config: Config, overrides: Mapping[str, str]) -> tuple[ConfigEntry, ...]:
    """Every setting of a topic, sorted by name; "default" is the broker's value for it."""
    return tuple(
        ConfigEntry(
            key=name,
            value=value.text,
            default=config.values[f"topic.{name}"].text,
            source="topic" if name in overrides else value.source,
            dynamic=True,
        )
        for name, value in sorted(_values(topic, config, overrides).items())
        if name in NAMES
    )


def _effective(
    topic: str,
    config: Config,
    overrides: Mapping[str, str],
    partitions: int | None,
    replicas: int | None,
) -> dict[str, Value]:
    values = _values(topic, config, overrides)
    for name, number in (("partitions", partitions), ("replicas", replicas)):
        if number is not None:
            setting, source = SETTINGS[f"topic.{name}"], f"topic '{topic}'"
            text, parsed = parse_value(setting, name, number, source)
            values[name] = Value(name, setting, text, parsed, setting.default, "cli", source)
    return values


def _values(topic: str, config: Config, overrides: Mapping[str, str]) -> dict[str, Value]:
    values = {
        key.removeprefix("topic."): value
        for key, value in config.values.items()
        if key.startswith("topic.")
    }
    for name, text in overrides.items():
        setting = NAMES[name]
        default = values[name].text
        parsed = setting.kind.parse(text)
        values[name] = Value(name, setting, text, parsed, default, "cli", f"topic '{topic}'")
    return values


def _setting(source: str, name: str) -> Setting:
    setting = NAMES.get(name)
    if setting is None:
        import difflib  # only a mistake pays for it

        for key in (name, f"storage.{name}"):
            if key in SETTINGS and not SETTINGS[key].per_topic:
                raise texts.setting_of_broker(source, name, key=key)
        known = [key for key, setting in NAMES.items() if setting.exists]
        similar = difflib.get_close_matches(name, known, n=1)
        raise texts.setting_unknown(source, name, similar=similar[0] if similar else None)
    if not setting.exists:
        raise texts.setting_later(source, name, release=setting.later)
    return setting
