"""``admin.erase`` and ``delete_records``: what is asked, refused, waited for, tried again."""

import uuid
from typing import Any

import anyio
import pytest

import tailrace
import tailrace.sync
from tailrace.client.cluster import Cluster
from tailrace.client.erasing import delete_records_request, erase_request
from tailrace.protocol.connection import Incoming
from tailrace.protocol.errors import (
    ConfigError,
    ConnectError,
    OffsetOutOfRange,
    PartitionNotFound,
    RequestTimeout,
    TopicNotFound,
)
from tailrace.protocol.messages_admin import (
    DeleteRecordsRequest,
    EraseRequest,
    ErasureResponse,
    GetErasureRequest,
    RecordPosition,
    ReplicaErasure,
    StartOffset,
)
from tailrace.testing import Broker
from tests.client.fake_broker import FakeConnection
from tests.client.fetch_broker import FetchBroker, FetchWorld
from tests.client.world import Run

ID = bytes(range(16))


# ── with a broker ────────────────────────────────────────────────────────────────────────────


def test_erased_records_are_never_delivered_again(run: Run, broker: Broker) -> None:
    topic = broker.name("orders")
    broker.seed(topic, [b"a", b"b", b"c", b"d"], keys=[b"k", b"l", b"k", b"m"])

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            receipt = await client.admin.erase(topic, keys=[b"k", b"k"], records=[(0, 3), (0, 3)])
            assert receipt.completed_at is not None
            assert receipt.requested_at <= receipt.completed_at
            assert (receipt.topic, receipt.records) == (topic, 3)
            assert set(receipt.replicas.values()) == {"done"}
            assert str(uuid.UUID(receipt.id)) == receipt.id
            again = await client.admin.erase(topic, keys=[b"k", b"nobody"])
            assert (again.records, again.completed_at is None) == (0, False)
            assert again.id != receipt.id

    run(main)
    assert [(one.offset, one.value) for one in broker.records(topic)] == [(1, b"b")]


def test_log_starts_move_and_are_told(run: Run, broker: Broker) -> None:
    topic = broker.name("orders")
    broker.create_topic(topic, partitions=2)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.producer() as producer:
                await producer.send_many(topic, [b"%d" % n for n in range(10)], partition=1)
            admin = client.admin
            assert await admin.delete_records(topic, {1: 4, 0: "end"}) == {1: 4, 0: 0}
            assert await admin.delete_records(topic, {1: 2}) == {1: 4}
            detail = await admin.describe_topic(topic)
            assert [one.log_start for one in detail.partition_list] == [0, 4]
            with pytest.raises(OffsetOutOfRange) as refused:
                await admin.delete_records(topic, {1: 11})
            assert (refused.value.requested, refused.value.end) == (11, 10)
            assert refused.value.hint == f"Look: tailrace topic describe {topic}"
            assert await admin.delete_records(topic, {1: "end"}) == {1: 10}
            assert await admin.delete_records(topic, {}) == {}

    run(main)


def test_a_second_try_removes_nothing_that_was_sent_after_the_first(
    run: Run, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = broker.name("orders")
    broker.seed(topic, [b"a", b"b"])
    unchanged, lost = Cluster.leader_request, [1]

    async def leader_request(self: Cluster, leader: Any, message: Any, **options: Any) -> Any:
        answer = await unchanged(self, leader, message, **options)
        if isinstance(message, DeleteRecordsRequest) and lost:
            lost.clear()
            await anyio.to_thread.run_sync(broker.seed, topic, [b"c"])
            raise ConnectError("T001", "its connection was lost", "Try again.")
        return answer

    monkeypatch.setattr(Cluster, "leader_request", leader_request)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            assert await client.admin.delete_records(topic, {0: "end"}) == {0: 2}

    run(main)
    assert not lost
    assert [(one.offset, one.value) for one in broker.records(topic)] == [(2, b"c")]


def test_what_is_not_there_is_refused(run: Run, broker: Broker) -> None:
    topic = broker.name("orders")
    broker.seed(topic, [b"a"])

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            with pytest.raises(TopicNotFound):
                await client.admin.erase("missing", keys=[b"k"])
            with pytest.raises(TopicNotFound):
                await client.admin.delete_records("missing", {0: 1})
            with pytest.raises(PartitionNotFound):
                await client.admin.erase(topic, records=[(1, 0)])
            with pytest.raises(OffsetOutOfRange, match="Look: tailrace topic describe"):
                await client.admin.erase(topic, records=[(0, 1)])

    run(main)


def test_the_same_without_an_event_loop(broker: Broker) -> None:
    topic = broker.name("orders")
    broker.seed(topic, [b"a", b"b"], keys=[b"k", b"l"])
    with tailrace.sync.connect(broker.url) as client:
        receipt = client.admin.erase(topic, keys=[b"k"], timeout=30.0)
        assert (receipt.records, receipt.completed_at is None) == (1, False)
        assert receipt.id in [event.get("erasure") for event in broker.events()]
        pending = client.admin.erase(topic, records=[(0, 1)], wait=False)
        assert pending.id != receipt.id
        assert client.admin.delete_records(topic, {0: "end"}) == {0: 2}


# ── requests ─────────────────────────────────────────────────────────────────────────────────


def test_each_key_and_record_is_asked_for_once() -> None:
    request = erase_request(ID, "orders", [b"b", b"a", b"b"], [(0, 3), (0, 3), (1, 3)])
    positions = (RecordPosition(0, 3), RecordPosition(1, 3))
    assert request == EraseRequest(ID, "orders", (b"b", b"a"), positions)


@pytest.mark.parametrize(
    ("keys", "records", "text"),
    [
        ([], [], "must be keys or records to erase"),
        (b"k", [], "must be a sequence of bytes"),
        ("k", [], "must be a sequence of bytes"),
        (["k"], [], "must be a sequence of bytes"),
        ([b"%d" % n for n in range(1_001)], [], "must be at most 1,000 of them"),
        ([], [(0, n) for n in range(1_001)], "must be at most 1,000 of them"),
        ([bytes(40_000), bytes(40_001)], [], "must be at most 65,536 bytes in one request"),
        ([], [3], r"records=\[3\] must be \(partition, offset\) pairs"),
        ([], [[0, 3]], r"must be \(partition, offset\) pairs"),
        ([], [(0, "3")], r"must be \(partition, offset\) pairs"),
        ([], [(0, -3)], r"must be \(partition, offset\) pairs"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_the_call(
    keys: list[bytes], records: list[Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as refused:
        erase_request(ID, "orders", keys, records)
    assert refused.value.code == "T082"


@pytest.mark.parametrize("offset", [-1, "start", 2.5, None])
def test_what_is_no_offset_is_refused_at_the_call(offset: Any) -> None:
    starts = delete_records_request("orders", {0: 0, 1: "end"}).partitions
    assert starts == (StartOffset(0, 0), StartOffset(1, -1))
    with pytest.raises(ConfigError, match=r"T082: .*must be an offset or 'end'"):
        delete_records_request("orders", {0: offset})


# ── waiting ──────────────────────────────────────────────────────────────────────────────────


class SlowEraser(FetchBroker):
    """Takes erasures on, and is done with them after so many questions."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[EraseRequest] = []
        self.polls: list[GetErasureRequest] = []
        self.answers_lost = 0
        self.polls_lost = 0
        self.done_after = 3

    def serve(self, connection: FakeConnection, request: Incoming) -> None:
        message = request.message
        if isinstance(message, EraseRequest):
            self.asked.append(message)
            if len(self.asked) <= self.answers_lost:
                connection.break_off()
                return
            connection.respond(request, self.receipt(message.erasure_id))
        elif isinstance(message, GetErasureRequest):
            self.polls.append(message)
            if len(self.polls) <= self.polls_lost:
                connection.break_off()
                return
            connection.respond(request, self.receipt(message.erasure_id))
        else:
            super().serve(connection, request)

    def receipt(self, erasure_id: bytes) -> ErasureResponse:
        done = len(self.polls) >= self.done_after
        replicas = (ReplicaErasure("n1", done),)
        return ErasureResponse(erasure_id, "orders", 1, 5, 6 if done else None, replicas)


@pytest.fixture
def eraser() -> SlowEraser:
    return SlowEraser()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, eraser: SlowEraser) -> FetchWorld:
    return FetchWorld(monkeypatch, eraser)


def test_it_is_asked_until_it_is_done(run: Run, here: FetchWorld, eraser: SlowEraser) -> None:
    async def main() -> None:
        async with here.client() as client:
            receipt = await client.admin.erase("orders", keys=[b"k"])
            assert (receipt.completed_at, receipt.replicas) == (6, {"n1": "done"})
            assert len(eraser.polls) == 3
            assert {one.erasure_id for one in eraser.polls} == {eraser.asked[0].erasure_id}
            assert all(0 < one.wait_ms <= 500 for one in eraser.polls)

    run(main)


def test_without_waiting_nothing_is_asked(run: Run, here: FetchWorld, eraser: SlowEraser) -> None:
    async def main() -> None:
        async with here.client() as client:
            receipt = await client.admin.erase("orders", keys=[b"k"], wait=False)
            assert (receipt.completed_at, receipt.replicas) == (None, {"n1": "pending"})
            assert eraser.polls == []

    run(main)


def test_after_the_timeout_the_receipt_is_open(
    run: Run, here: FetchWorld, eraser: SlowEraser
) -> None:
    eraser.done_after = 1 << 30

    async def main() -> None:
        async with here.client() as client:
            receipt = await client.admin.erase("orders", keys=[b"k"], timeout=0.05)
            assert receipt.completed_at is None

    run(main)


def test_a_request_whose_answer_was_lost_is_sent_again_under_its_id(
    run: Run, here: FetchWorld, eraser: SlowEraser
) -> None:
    eraser.answers_lost = 2

    async def main() -> None:
        async with here.client() as client:
            assert (await client.admin.erase("orders", keys=[b"k"])).completed_at == 6
            assert len(eraser.asked) == 3
            assert len(set(eraser.asked)) == 1

    run(main)


def test_an_outage_while_waiting_is_borne_until_the_timeout(
    run: Run, here: FetchWorld, eraser: SlowEraser
) -> None:
    eraser.polls_lost = 2

    async def main() -> None:
        async with here.client() as client:
            assert (await client.admin.erase("orders", keys=[b"k"])).completed_at == 6
        async with here.client(request_timeout=0.02) as client:
            eraser.polls.clear()
            eraser.done_after = 1 << 30
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(break_off, here, eraser)
                receipt = await client.admin.erase("orders", keys=[b"k"], timeout=0.2)
            assert receipt.completed_at is None
            with pytest.raises(RequestTimeout):
                await client.admin.erase("orders", keys=[b"k"])

    run(main)


async def break_off(here: FetchWorld, eraser: SlowEraser) -> None:
    """The broker goes away once it was asked how far it is."""
    while not eraser.polls:  # noqa: ASYNC110 what is waited for has no event
        await anyio.sleep(0.001)
    here.fetch.refusing = ConnectionRefusedError()
    here.fetch.disconnect()
