"""Settings of single topics over the broker's defaults."""

import pytest

from tailrace.broker.config import from_mapping
from tailrace.broker.topic_config import (
    NAMES,
    apply_changes,
    checked,
    effective,
    entries,
    parse_overrides,
)
from tailrace.protocol.errors import ConfigError
from tailrace.protocol.units import BARE_UNITS

CONFIG = from_mapping({"topic.retention": "3d"})


def test_given_values_become_canonical() -> None:
    given = {"retention": "604800s", "max_record": "1048576B", "segment_age": "60m"}
    assert parse_overrides("orders", given) == {
        "retention": "7d",
        "max_record": "1MiB",
        "segment_age": "1h",
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"retenton": "7d"}, "T080: topic 'orders': retenton unknown. Did you mean retention?"),
        (
            {"storage.max_size": "1GiB"},
            "T080: topic 'orders': storage.max_size unknown. storage.max_size is a setting of the",
        ),
        ({"max_size": "1GiB"}, "T080: topic 'orders': max_size unknown. storage.max_size is a"),
        ({"topic.retention": "1d"}, "T080: topic 'orders': topic.retention unknown. Did you mean"),
        ({"partitions": "2"}, "T080: topic 'orders': partitions unknown."),
        ({"cleanup": "shrink"}, "T082: topic 'orders': cleanup = 'shrink' is not one of delete"),
        ({"compaction_dirty_ratio": "50%"}, "T082: topic 'orders': compaction_dirty_ratio = '50%"),
        ({"retention": "soon"}, "T082: topic 'orders': retention = 'soon' is not a duration"),
        ({"retention": "7"}, "T082: topic 'orders': retention = '7' is not a duration such as"),
        (
            {"compaction_lag_max": "1ms"},
            "T082: topic 'orders': compaction_lag_max = '1ms' is not a duration such as \"30s\" or "
            '"1.5h", at least 1s',
        ),
        ({"retention_size": "1000000"}, "T082: topic 'orders': retention_size = '1000000' is not"),
        ({"max_record": "1.5B"}, "T082: topic 'orders': max_record = '1.5B' is not a size"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides("orders", given)
    assert str(caught.value).startswith(said)


def test_the_sdk_knows_the_unit_of_every_number_of_a_topic() -> None:
    units = {name: setting.kind.bare_unit for name, setting in NAMES.items()}
    assert {name: unit for name, unit in units.items() if unit} == BARE_UNITS


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"min_isr": "2"}, "T081"),
        ({"durability": "replicated"}, "T083"),
        ({"max_record": "16MiB"}, "T082"),
        ({"cleanup": "compact", "on_full": "drop_oldest"}, "T083"),
    ],
)
def test_settings_that_contradict_are_refused(given: dict[str, str], code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked("orders", CONFIG, parse_overrides("orders", given), brokers=1)
    assert caught.value.code == code
    assert caught.value.source == "topic 'orders'"


def test_more_replicas_than_brokers_are_refused() -> None:
    with pytest.raises(ConfigError, match="replicas 2 > brokers 1"):
        checked("orders", CONFIG, {}, replicas=2, brokers=1)
    assert checked("orders", CONFIG, {}, replicas=2, brokers=2).replicas == 2


def test_a_topic_that_is_there_has_the_settings_it_has() -> None:
    topic = effective("orders", CONFIG, parse_overrides("orders", {"min_isr": "2"}), replicas=1)
    assert (topic.min_isr, topic.replicas) == (2, 1)


def test_overrides_win_over_the_brokers_defaults() -> None:
    topic = effective("orders", CONFIG, {"durability": "os"}, partitions=5)
    assert (topic.durability, topic.retention_ms, topic.partitions) == ("os", 259_200_000, 5)


def test_null_takes_a_setting_back_to_the_default() -> None:
    overrides = {"retention": "1d", "durability": "os"}
    changes = {"retention": None, "segment_age": "2h"}
    assert apply_changes("orders", overrides, changes) == {"durability": "os", "segment_age": "2h"}
    with pytest.raises(ConfigError, match="T080"):
        apply_changes("orders", overrides, {"nothing": None})


def test_entries_tell_value_default_and_source() -> None:
    found = {entry.key: entry for entry in entries("orders", CONFIG, {"durability": "os"})}
    assert list(found) == sorted(found)
    own, broker, table = found["durability"], found["retention"], found["max_record"]
    assert (own.value, own.default, own.source, own.dynamic) == ("os", "fsync", "topic", True)
    assert (broker.value, broker.default, broker.source) == ("3d", "3d", "cli")
    assert (table.value, table.source) == ("1MiB", "default")
    assert "partitions" not in found


def test_cleanup_says_what_may_go() -> None:
    may_go = {
        text: (topic.compacts, topic.deletes)
        for text in ("delete", "compact", "compact,delete")
        if (topic := effective("orders", CONFIG, {"cleanup": text}))
    }
    assert may_go == {
        "delete": (False, True),
        "compact": (True, False),
        "compact,delete": (True, True),
    }


def test_segments_of_a_compacted_topic_close_in_time_to_be_cleaned() -> None:
    short = {"compaction_lag_max": "10m", "segment_age": "2h"}
    assert effective("orders", CONFIG, short).segment_age_ms == 7_200_000
    assert effective("orders", CONFIG, {**short, "cleanup": "compact"}).segment_age_ms == 600_000
    # Retention does not hold for it, so it does not shorten the age either.
    kept = effective("orders", CONFIG, {"cleanup": "compact", "retention": "8m"})
    assert kept.segment_age_ms == 86_400_000
