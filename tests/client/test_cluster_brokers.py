"""Several brokers: whoever is gone costs nobody else a request."""

import logging
import math

import anyio
import pytest

from tailrace.client.channel import Body, Channel
from tailrace.protocol import texts
from tailrace.protocol.errors import ConnectError, MetadataUnavailable
from tailrace.protocol.messages import MetadataRequest, Request, Response
from tests.client.fake_cluster import FakeCluster, View
from tests.client.world import Run, until


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    return FakeCluster(monkeypatch)


def away() -> MetadataUnavailable:
    return texts.metadata_unavailable("etcd", "no answer")


# ── the first connection ─────────────────────────────────────────────────────────────────────


def test_any_of_the_addresses_will_do(run: Run, together: FakeCluster) -> None:
    together.brokers["n1"].kill()
    together.brokers["n2"].black_hole = True

    async def main() -> None:
        async with together.client(connect_timeout=1.5) as client:
            assert client.health().address == "n3:7400"
            assert sorted(client.cluster.brokers) == ["n1", "n2", "n3"]

    run(main)


def test_a_broker_that_cannot_say_who_is_there_is_passed_over(
    run: Run, together: FakeCluster
) -> None:
    together.brokers["n1"].metadata_script.append(away())

    async def main() -> None:
        async with together.client() as client:
            assert client.health().address == "n2:7400"

    run(main)


@pytest.mark.parametrize("brokers", [1, 3])
def test_a_broker_that_ends_right_after_its_first_answer_is_dialled_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, brokers: int
) -> None:
    together = FakeCluster(monkeypatch, brokers)
    together.create("orders")
    ask = Channel.request

    async def ask_and_break(
        self: Channel, message: Request, body: Body = (), *, timeout: float = math.inf
    ) -> tuple[Response, memoryview]:
        monkeypatch.setattr(Channel, "request", ask)
        answer = await ask(self, message, body, timeout=timeout)
        self.close("closed by the broker")
        return answer

    async def main() -> None:
        monkeypatch.setattr(Channel, "request", ask_and_break)
        async with together.client() as client, client.producer() as producer:
            assert (await producer.send("orders", b"1")).offset == 0

    run(main)


def test_what_all_brokers_say_instead_is_raised(run: Run, together: FakeCluster) -> None:
    for broker in together.brokers.values():
        broker.metadata_script.append(away())

    async def main() -> None:
        with pytest.raises(MetadataUnavailable):
            async with together.client():
                pass

    run(main)


def test_given_address_that_nobody_named_is_tried_when_all_others_are_gone(
    run: Run, together: FakeCluster
) -> None:
    """n2 and n3 were away when the client came; now they are all there is."""
    topic = together.create("orders")
    together.brokers["n1"].stuck = View(("n1",), dict(together.view.leaders))

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            assert list(client.cluster.brokers) == ["n1"]
            together.brokers["n1"].kill()
            together.leave("n1")
            together.elect(topic, "n2")
            assert (await producer.send("orders", b"1")).offset == 1
            assert sorted(client.cluster.brokers) == ["n2", "n3"]
            assert client.health().healthy

    run(main)


# ── what anybody can answer ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("silent", [False, True])
def test_another_broker_answers_for_home(run: Run, together: FakeCluster, silent: bool) -> None:
    together.create("orders", leader="n2")

    async def main() -> None:
        async with together.client(request_timeout=4.0) as client:
            assert client.health().address == "n1:7400"
            if silent:
                together.brokers["n1"].black_hole = True
            else:
                together.brokers["n1"].kill()
            with anyio.fail_after(1.0):
                assert (await client.cluster.topic("orders")).partitions[0].leader == "n2"
            assert client.health().address in ("n2:7400", "n3:7400"), "home has moved on"
            assert client.health().healthy

    run(main)


def test_error_of_one_broker_is_not_the_cluster_s(run: Run, together: FakeCluster) -> None:
    together.create("orders")

    async def main() -> None:
        async with together.client() as client:
            together.brokers["n1"].metadata_script.extend([away()] * 100)
            assert (await client.cluster.topic("orders")).name == "orders"

    run(main)


def test_topic_is_created_on_first_use_by_one_broker(run: Run, together: FakeCluster) -> None:
    together.brokers["n1"].auto_create = True

    async def main() -> None:
        async with together.client() as client:
            topic = await client.cluster.topic("orders", auto_create=True)
            assert topic.created
            asked = [
                request.message
                for broker in together.brokers.values()
                for request in broker.requests
                if isinstance(request.message, MetadataRequest) and request.message.auto_create
            ]
            assert len(asked) == 1
            client.cluster.invalidate("orders")
            assert not (await client.cluster.topic("orders", auto_create=True)).created

    run(main)


def test_change_is_asked_of_another_when_home_cannot_make_it(
    run: Run, together: FakeCluster
) -> None:
    """A producer's id, say, which takes the metadata store; home is cut off from it."""
    together.create("orders", leader="n2")
    n1 = together.brokers["n1"]
    n1.no_ids = away()

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            with anyio.fail_after(2.0):
                assert (await producer.send("orders", b"0")).offset == 0

    run(main)


# ── what only one can answer ─────────────────────────────────────────────────────────────────


def test_request_to_a_broker_that_is_down_fails_at_once(run: Run, together: FakeCluster) -> None:
    async def main() -> None:
        async with together.client() as client:
            together.brokers["n2"].kill()
            question = MetadataRequest((), False)
            for _ in range(3):
                with anyio.fail_after(0.5), pytest.raises(ConnectError, match="T001"):
                    await client.cluster.leader_request("n2", question, timeout=4.0)
            together.brokers["n2"].start()
            await until(lambda: client.cluster.reachable("n2"))
            await client.cluster.leader_request("n2", question, timeout=4.0)

    run(main)


def test_request_to_a_silent_broker_ends_when_that_has_left(
    run: Run, together: FakeCluster
) -> None:
    async def main() -> None:
        async with together.client() as client:
            question = MetadataRequest((), False)
            await client.cluster.leader_request("n2", question, timeout=1.0)
            together.brokers["n2"].black_hole = True
            together.leave("n2")
            with anyio.fail_after(1.0), pytest.raises(ConnectError, match="left the cluster"):
                await client.cluster.leader_request("n2", question, timeout=4.0)

    run(main)


def test_outage_is_one_only_when_nobody_can_be_reached(
    run: Run, together: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tailrace.client")

    async def main() -> None:
        async with together.client(max_outage=0.1) as client:
            together.brokers["n1"].kill()
            await until(lambda: client.health().healthy)
            await anyio.sleep(0.2)
            assert client.health().healthy, "max_outage is about the cluster"
            assert client.cluster.failure is None

    run(main)
    assert "reconnecting n1:7400" in caplog.text
