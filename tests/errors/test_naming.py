"""T010-T013, T043, T044: what was named is not there, is there already, or may not be."""

from collections.abc import Callable

import pytest

import tailrace
from tailrace.protocol.errors import TailraceError
from tailrace.testing import Broker
from tests.errors.provoking import told


def fails(call: Callable[[], object]) -> TailraceError:
    with pytest.raises(TailraceError) as caught:
        call()
    return caught.value


@pytest.mark.provokes("T010")
def test_a_topic_that_does_not_exist(broker: Broker, topic: str) -> None:
    typo = topic[:-1] + "x"
    error = fails(lambda: broker.client().admin.describe_topic(typo))
    told(error, "T010", f"topic '{typo}' does not exist", name=typo)
    assert isinstance(error, tailrace.TopicNotFound)
    assert topic in error.similar
    assert error.hint == (
        f"Similar: {', '.join(error.similar)}. Create it: tailrace topic create {typo}"
    )


@pytest.mark.provokes("T010")
def test_a_topic_that_may_not_be_made_by_a_producer() -> None:
    with Broker(config={"broker.auto_create": False}) as broker:
        with broker.client() as client, client.producer() as producer:
            error = fails(lambda: producer.send("ordrs", b"a"))
    told(error, "T010", r"topic 'ordrs' does not exist \(auto-create is off\)", name="ordrs")
    assert error.hint == "Create it: tailrace topic create ordrs"


@pytest.mark.provokes("T011")
def test_a_partition_that_does_not_exist(broker: Broker, topic: str) -> None:
    with broker.client().producer() as producer:
        error = fails(lambda: producer.send(topic, b"a", partition=7))
    message = rf"{topic}\[7\] does not exist: topic '{topic}' has 1 partition"
    told(error, "T011", message, name=f"{topic}[7]")


@pytest.mark.provokes("T012")
def test_a_name_that_is_taken(broker: Broker, topic: str) -> None:
    admin = broker.client().admin
    told(fails(lambda: admin.create_topic(topic)), "T012", f"topic '{topic}' exists already")
    error = fails(lambda: admin.create_topic(topic, partitions=3, exist_ok=True))
    told(error, "T012", f"topic '{topic}' exists, but partitions is 1, not 3")


@pytest.mark.provokes("T013")
def test_names_that_may_not_be_used(broker: Broker, topic: str) -> None:
    admin = broker.client().admin
    twin = topic.upper()
    says = {
        "a/b": "topic name 'a/b' of 3 characters is not allowed",
        "__mine": "topic name '__mine' is reserved: '__' begins internal topics",
        twin: f"topic name '{twin}' differs from topic '{topic}' only by case or by . and _",
    }
    for name, message in says.items():
        told(fails(lambda: admin.create_topic(name)), "T013", message)  # noqa: B023
    error = fails(lambda: broker.client().consumer(topic, group=""))
    told(error, "T013", "group '' of 0 characters is not allowed")


@pytest.mark.provokes("T043", "T044")
def test_groups_that_are_not_there_or_have_members(broker: Broker, topic: str) -> None:
    broker.seed(topic, [b"a"])
    group, typo = f"billing-{topic}", f"biling-{topic}"
    with broker.client() as client, client.consumer(topic, group=group) as consumer:
        next(iter(consumer))
        error = fails(lambda: client.admin.describe_group(typo))
        told(error, "T043", f"group '{typo}' does not exist", name=typo, similar=[group])
        assert error.hint == f"Similar: {group}. List them: tailrace group list"
        (member,) = client.admin.describe_group(group).member_list
        error = fails(lambda: client.admin.delete_group(group))
        told(
            error,
            "T044",
            rf"group '{group}' has 1 member \({member.member_id}\)",
            members=[member.member_id],
        )
        assert error.hint == f"Stop its consumers first: tailrace group describe {group}"
