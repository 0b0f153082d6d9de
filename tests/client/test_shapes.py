"""The JSON of shapes has their names."""

import json

from tailrace.client.shapes import ConsumerHealth, Event
from tailrace.protocol.shapes import ConfigEntry, TopicPartition, to_json


def test_shape_becomes_an_object_by_its_names() -> None:
    entry = ConfigEntry("retention", "7d", "7d", "default", dynamic=True)
    assert to_json(entry) == {
        "key": "retention",
        "value": "7d",
        "default": "7d",
        "source": "default",
        "dynamic": True,
    }


def test_topic_partition_is_an_object_within_a_shape() -> None:
    health = ConsumerHealth("ok", True, None, [TopicPartition("orders", 2)], 0, None, None)
    assert to_json(health)["assigned"] == [{"topic": "orders", "partition": 2}]


def test_containers_and_scalars_stay_json() -> None:
    event = Event("stalled", 5, "why", {"at": (1, 2), "more": {"a": None}})
    assert json.loads(json.dumps(to_json(event))) == {
        "name": "stalled",
        "at": 5,
        "reason": "why",
        "details": {"at": [1, 2], "more": {"a": None}},
    }
