"""A broker whose disk failed says so (T093) and ends: where others are, they lead by then."""

import anyio
import pytest

from tailrace.client.accumulator import PendingBatch
from tailrace.client.coordinator import Coordinator
from tailrace.client.offsets import list_offsets
from tailrace.protocol import texts_storage
from tailrace.protocol.errors import BrokerError, TailraceError, to_wire
from tailrace.protocol.messages import (
    FetchOffsetsRequest,
    FetchOffsetsResponse,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    OffsetFound,
    OffsetQuery,
    Response,
)
from tailrace.protocol.shapes import TopicPartition
from tests.client.fake_cluster import FakeCluster
from tests.client.world import Run, until

AT = TopicPartition("orders", 0)
MANY = 1_000


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    return FakeCluster(monkeypatch)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    return FakeCluster(monkeypatch, brokers=1)


def failed(*, maybe_written: bool = False) -> TailraceError:
    error = texts_storage.sync_failed("/var/lib/tailrace", reason="Input/output error")
    if maybe_written:
        error.details = {**error.details, "maybe_written": True}
    return error


def test_record_goes_to_the_next_leader(run: Run, together: FakeCluster) -> None:
    topic = together.create("orders")
    n1 = together.brokers["n1"]

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            n1.script.extend([failed(maybe_written=True)] * MANY)
            delivery = producer.enqueue_nowait("orders", b"1")
            with anyio.move_on_after(0.02):
                await delivery
            assert not delivery.done()
            n1.kill()
            together.elect(topic, "n2")
            with anyio.fail_after(2.0):
                assert (await delivery).offset == 1

    run(main)
    assert topic.logs[0] == [b"0", b"1"]


@pytest.mark.parametrize("maybe_written", [False, True])
def test_record_may_have_been_written_where_the_broker_says_so(
    run: Run, together: FakeCluster, maybe_written: bool
) -> None:
    together.create("orders")
    n1 = together.brokers["n1"]

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            n1.script.extend([failed(maybe_written=maybe_written)] * 3)
            delivery = producer.enqueue_nowait("orders", b"1")
            await until(lambda: not n1.script)
            assert isinstance(delivery.batch, PendingBatch)
            assert delivery.batch.uncertain is maybe_written
            assert (await delivery).offset == 1

    run(main)


def test_reading_goes_on_at_the_next_leader(run: Run, together: FakeCluster) -> None:
    topic = together.create("orders")
    together.append(topic, b"0")

    async def main() -> None:
        async with together.client() as client, client.consumer("orders") as consumer:
            records = consumer.__aiter__()
            assert (await records.__anext__()).value == b"0"
            together.brokers["n1"].refuse_with.extend([failed()] * MANY)
            together.elect(topic, "n2")
            together.append(topic, b"1")
            with anyio.fail_after(2.0):
                assert (await records.__anext__()).value == b"1"

    run(main)


def without_disk(together: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """n1 says T093 to whoever asks for offsets."""

    def refused(query: OffsetQuery) -> OffsetFound:
        return OffsetFound(query.topic_id, query.partition, to_wire(failed()), -1, -1, -1)

    monkeypatch.setattr(together.brokers["n1"], "_find", refused)


def test_offsets_are_asked_of_the_next_leader(
    run: Run, together: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = together.create("orders")
    together.append(topic, b"0")
    without_disk(together, monkeypatch)

    async def main() -> None:
        async with together.client() as client:
            await client.cluster.topic("orders")
            together.elect(topic, "n2")
            assert await list_offsets(client, [AT], "latest") == {AT: 1}

    run(main)


def test_commits_go_to_the_next_coordinator(run: Run, together: FakeCluster) -> None:
    asked: list[str] = []

    def answer(name: str, message: object) -> Response | None:
        if isinstance(message, FindCoordinatorRequest):
            return FindCoordinatorResponse("n2" if asked else "n1", 0)
        if isinstance(message, FetchOffsetsRequest):
            asked.append(name)
            if name == "n1":
                raise failed()
            return FetchOffsetsResponse(())
        return None

    together.answer = answer

    async def main() -> None:
        async with together.client() as client:
            await Coordinator(client, "g").request(FetchOffsetsRequest("g", ()), timeout=2.0)
        assert asked == ["n1", "n2"]

    run(main)


# ── one broker: nobody else will come ────────────────────────────────────────────────────────


def test_alone_it_is_the_outcome_of_a_record(run: Run, alone: FakeCluster) -> None:
    alone.create("orders")

    async def main() -> None:
        async with alone.client("tailrace://n1") as client, client.producer() as producer:
            await producer.send("orders", b"0")
            alone.brokers["n1"].script.append(failed())
            with pytest.raises(BrokerError, match="T093"):
                await producer.send("orders", b"1")

    run(main)


def test_alone_it_is_raised_to_the_reader(run: Run, alone: FakeCluster) -> None:
    topic = alone.create("orders")
    alone.append(topic, b"0")

    async def main() -> None:
        async with alone.client("tailrace://n1") as client, client.consumer("orders") as consumer:
            alone.brokers["n1"].refuse_with.append(failed())
            with pytest.raises(BrokerError, match="T093"):
                await consumer.__aiter__().__anext__()

    run(main)


def test_alone_it_is_raised_to_whoever_asks_for_offsets(
    run: Run, alone: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.create("orders")
    without_disk(alone, monkeypatch)

    async def main() -> None:
        async with alone.client("tailrace://n1") as client:
            with pytest.raises(BrokerError, match="T093"):
                await list_offsets(client, [AT], "latest")

    run(main)
