"""A broker that is cut off from the store goes on answering, with what it knew then.

Whoever follows its word arrives nowhere, so it is doubted, and another is asked.
"""

from dataclasses import replace

import anyio
import pytest

from tailrace.client.coordinator import Coordinator
from tailrace.client.offsets import list_offsets
from tailrace.protocol.messages import (
    FetchOffsetsRequest,
    FetchOffsetsResponse,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    MetadataRequest,
    Response,
)
from tailrace.protocol.shapes import TopicPartition
from tests.client.fake_broker import Topic
from tests.client.fake_cluster import FakeCluster
from tests.client.world import Run, until

QUICK_S = 2.0  # of real time, where it would be tried for ever: far more than it takes


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    return FakeCluster(monkeypatch)


def led_by_n3(together: FakeCluster) -> Topic:
    """n1 is home, and leads nothing."""
    topic = together.create("orders", leader="n3")
    together.append(topic, b"0")
    return topic


def fail_over(together: FakeCluster, topic: Topic, how: str) -> None:
    """n2 leads instead of n3, and n1 does not learn of it."""
    together.brokers["n1"].stuck = together.view
    if how == "killed":
        together.brokers["n3"].kill()
        together.leave("n3")
    together.elect(topic, "n2")


HOW = pytest.mark.parametrize("how", ["killed", "refuses"])


@HOW
def test_records_reach_a_leader_that_home_does_not_know(
    run: Run, together: FakeCluster, how: str
) -> None:
    topic = led_by_n3(together)

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            await producer.send("orders", b"1")
            fail_over(together, topic, how)
            with anyio.fail_after(QUICK_S):
                assert (await producer.send("orders", b"2")).offset == 1
            assert together.brokers["n1"].metadata_asked < 5

    run(main)


@HOW
def test_reading_goes_on_at_a_leader_that_home_does_not_know(
    run: Run, together: FakeCluster, how: str
) -> None:
    topic = led_by_n3(together)

    async def main() -> None:
        async with together.client() as client, client.consumer("orders") as consumer:
            records = consumer.__aiter__()
            assert (await records.__anext__()).value == b"0"
            fail_over(together, topic, how)
            together.append(topic, b"1")
            with anyio.fail_after(QUICK_S):
                assert (await records.__anext__()).value == b"1"

    run(main)


def test_offsets_are_asked_of_a_leader_that_home_does_not_know(
    run: Run, together: FakeCluster
) -> None:
    topic, at = led_by_n3(together), TopicPartition("orders", 0)

    async def main() -> None:
        async with together.client() as client:
            assert await list_offsets(client, [at], "latest") == {at: 1}
            fail_over(together, topic, "killed")
            with anyio.fail_after(QUICK_S):
                assert await list_offsets(client, [at], "latest") == {at: 1}

    run(main)


def test_coordinator_that_home_does_not_know_is_found(run: Run, together: FakeCluster) -> None:
    asked: list[str] = []

    def answer(name: str, message: object) -> Response | None:
        if isinstance(message, FindCoordinatorRequest):
            asked.append(name)
            return FindCoordinatorResponse("n3" if name == "n1" else "n2", 0)
        if isinstance(message, FetchOffsetsRequest):
            return FetchOffsetsResponse(())
        return None

    together.answer = answer

    async def main() -> None:
        async with together.client() as client:
            together.brokers["n3"].kill()
            coordinator = Coordinator(client, "g")
            with anyio.fail_after(QUICK_S):
                await coordinator.request(FetchOffsetsRequest("g", ()), timeout=60.0)
            assert asked[:2] == ["n1", "n2"]

    run(main)


def test_what_was_right_when_it_was_said_is_no_reason_to_doubt(
    run: Run, together: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    led_by_n3(together)

    async def main() -> None:
        async with together.client() as client:
            await client.cluster.topic("orders")
            monkeypatch.setattr("tailrace.client.cluster.DOUBTED_S", 0.0)
            client.cluster.misled("orders")
            await client.cluster.topic("orders")
            assert client.health().address == "n1:7400"
            monkeypatch.undo()
            client.cluster.misled("orders")
            await client.cluster.topic("orders")
            assert client.health().address != "n1:7400"

    run(main)


def test_broker_whose_leaders_are_older_than_those_we_know_is_doubted(
    run: Run, together: FakeCluster
) -> None:
    topic = led_by_n3(together)

    async def main() -> None:
        async with together.client() as client:
            before = together.view
            together.elect(topic, "n2")
            await client.cluster.topic("orders")
            together.brokers["n1"].stuck = before
            await client.cluster.refresh(timeout=10.0)
            assert client.health().address == "n1:7400"
            await client.cluster.refresh(timeout=10.0)
            assert client.health().address != "n1:7400"

    run(main)


def test_old_list_of_brokers_closes_no_connection_to_a_newer_leader(
    run: Run, together: FakeCluster
) -> None:
    """n2 had gone when n1 was cut off; it came back, and leads by now."""
    topic = led_by_n3(together)
    together.leave("n2")
    old = together.view
    together.come("n2")
    together.elect(topic, "n2")

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            await producer.send("orders", b"1")
            known = client.cluster.brokers["n2"]
            together.brokers["n1"].stuck = old
            await client.cluster.refresh(timeout=1.0)
            assert client.cluster.brokers.get("n2") is known
            assert known.up
            assert (await producer.send("orders", b"2")).offset == 1

    run(main)


def test_leader_that_has_left_goes_with_the_news_that_it_leads_no_more(
    run: Run, together: FakeCluster
) -> None:
    topic = led_by_n3(together)

    async def main() -> None:
        async with together.client() as client:
            await client.cluster.topic("orders")
            together.leave("n3")
            together.elect(topic, None)
            await client.cluster.refresh(timeout=1.0)
            assert sorted(client.cluster.brokers) == ["n1", "n2"]

    run(main)


def test_broker_that_is_doubted_and_was_never_dialled_is_dialled(
    run: Run, together: FakeCluster
) -> None:
    led_by_n3(together)

    async def main() -> None:
        async with together.client() as client:
            for name in ("n2", "n3", "n1"):
                client.cluster.doubt(name)
            await client.cluster.topic("orders")
            await until(lambda: all(one.up for one in client.cluster.brokers.values()))
            client.cluster.misled("orders")
            await client.cluster.topic("orders")
            assert together.brokers["n1"].metadata_asked == 2, "when it opened, and once"

    run(main)


def test_question_that_home_took_with_it_is_put_to_those_who_are_dialled_then(
    run: Run, together: FakeCluster
) -> None:
    led_by_n3(together)

    async def main() -> None:
        async with together.client() as client:
            together.brokers["n1"].kill()
            answer = await client.cluster.ask_any(MetadataRequest(("orders",), False), timeout=4.0)
            assert answer

    run(main)


def test_broker_that_cannot_be_dialled_is_waited_for_once(run: Run, together: FakeCluster) -> None:
    """n2 takes connections and says nothing: who has answered is asked again without a pause."""
    topic = led_by_n3(together)
    together.brokers["n2"].black_hole = True
    together.view = replace(together.view, leaders={(topic.topic_id, 0): (None, 1)})

    async def main() -> None:
        async with together.client(connect_timeout=30.0, request_timeout=30.0) as client:
            client.cluster.doubt("n1")
            client.cluster.doubt("n3")
            await client.cluster.topic("orders")
            assert together.brokers["n2"].connections, "it was dialled, and says nothing"
            assert client.cluster.brokers["n2"].late
            asked = [together.brokers[name].metadata_asked for name in ("n1", "n3")]
            client.cluster.misled("orders")
            with anyio.fail_after(QUICK_S):
                await client.cluster.topic("orders")
            assert [together.brokers[name].metadata_asked for name in ("n1", "n3")] != asked

    run(main)
