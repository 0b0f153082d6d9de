"""T032-T039, T041, T045: leaders, coordinators and offsets, mostly seen by clients only."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import tailrace
from tailrace.protocol import texts
from tailrace.protocol.errors import (
    CorruptBatch,
    EpochFenced,
    InternalError,
    NotLeader,
    OffsetNotAvailable,
    OffsetOutOfRange,
    SendTimeout,
    TailraceError,
    from_wire,
)
from tailrace.protocol.messages import (
    FetchResponse,
    InitProducerIdRequest,
    InitProducerIdResponse,
    ProduceResponse,
    WireError,
)
from tailrace.protocol.shapes import TopicPartition
from tailrace.testing import Broker
from tests.broker.harness import Client, batch, fetch_request, produce_request
from tests.broker.test_corruption import CONFIG, VALUES, flip_bit, read, written
from tests.errors.planting import answering
from tests.errors.provoking import told, with_raw_client

# ── between broker and client ────────────────────────────────────────────────────────────────


def arrived(error: WireError | None) -> TailraceError:
    assert error is not None
    found = from_wire(error)
    assert isinstance(found, InternalError), "every client retries it"
    return found


@pytest.mark.provokes("T032", "T037")
def test_a_leader_that_has_moved_or_just_begun() -> None:
    moved = texts.not_leader("orders", 0, broker="n1", leader="n2")
    begun = texts.offset_not_available("orders", 0, epoch=7)
    says = {
        NotLeader: r"broker n1 does not lead orders\[0\], broker n2 does",
        OffsetNotAvailable: r"the leader of orders\[0\] in epoch 7 does not know yet what is "
        "committed",
    }
    for error in (moved, begun):
        with answering(error, "fetch") as broker:

            async def talk(client: Client) -> None:
                with pytest.raises(InternalError) as caught:
                    await client.fetch(b"t" * 16)
                code = {NotLeader: "T032", OffsetNotAvailable: "T037"}[type(error)]  # noqa: B023
                told(caught.value, code, says[type(error)])  # noqa: B023

            with_raw_client(broker.url, talk)


@pytest.mark.provokes("T038", "T039")
def test_a_producer_out_of_line(broker: Broker, topic: str) -> None:
    async def talk(client: Client) -> None:
        (known,) = (await client.metadata(topic)).topics
        mine, _ = await client.ask(InitProducerIdRequest(None), InitProducerIdResponse)

        async def produce(producer_id: int, sequence: int) -> WireError | None:
            entry = batch(
                known.topic_id,
                [b"a"],
                producer_id=producer_id,
                producer_epoch=0,
                base_sequence=sequence,
            )
            request = produce_request(known.topic_id, [entry])
            answer, _ = await client.ask(request, ProduceResponse, entry)
            return answer.results[0].error

        assert await produce(mine.producer_id, 0) is None
        told(
            arrived(await produce(mine.producer_id, 1_000)),
            "T038",
            rf"producer {mine.producer_id} epoch 0 sent sequence 1,000 to {topic}\[0\], expected "
            "1; nothing was written",
        )
        stranger = mine.producer_id + 77
        told(
            arrived(await produce(stranger, 5)),
            "T039",
            rf"producer {stranger} epoch 0 is unknown to {topic}\[0\]; nothing was written",
        )

    with_raw_client(broker.url, talk)


@pytest.mark.provokes("T045")
def test_another_leader_epoch(broker: Broker, topic: str) -> None:
    async def talk(client: Client) -> None:
        (known,) = (await client.metadata(topic)).topics
        asked = fetch_request(known.topic_id)
        late = replace(asked, partitions=(replace(asked.partitions[0], leader_epoch=99),))
        answer, _ = await client.ask(late, FetchResponse)
        error = arrived(answer.results[0].error)
        assert isinstance(error, EpochFenced)
        message = rf"{topic}\[0\] is in leader epoch \d+, the request names 99"
        told(error, "T045", message)

    with_raw_client(broker.url, talk)


# ── what users see ───────────────────────────────────────────────────────────────────────────


@pytest.mark.provokes("T033")
def test_a_partition_whose_log_is_gone(tmp_path: Path) -> None:
    with Broker(data_dir=tmp_path / "data") as broker:
        broker.seed("orders", [b"a"])
        broker.stop()
        (lost,) = (tmp_path / "data" / "topics").glob("*-0")
        shutil.move(lost, tmp_path / "lost")
        broker.start()
        with broker.client().producer(timeout=0.2) as producer:
            with pytest.raises(SendTimeout) as caught:
                producer.send("orders", b"b")
    assert caught.value.last_error is not None
    told(
        caught.value.last_error,
        "T033",
        r"orders\[0\] is offline: .+",
    )
    assert caught.value.last_error.hint == "Look: tailrace explain orders:0"


@pytest.mark.provokes("T035")
def test_stored_bytes_that_are_damaged(tmp_path: Path) -> None:
    with Broker(data_dir=tmp_path / "data", config=CONFIG) as broker:
        written(broker)
        broker.stop()
        path = flip_bit(tmp_path / "data", VALUES[5])
        broker.start()
        with broker.client() as client:
            _, error = read(client, 0)
    assert isinstance(error, CorruptBatch)
    told(
        error,
        "T035",
        rf"orders\[0\]@0 is corrupt on broker n1: .*{path.name}.*; readable again from 20",
        **{"topic": "orders", "partition": 0, "offset": 0, "broker": "n1"},
    )


@pytest.mark.provokes("T041")
def test_an_offset_outside_the_log(broker: Broker, topic: str) -> None:
    broker.seed(topic, [b"a"] * 10)
    at = TopicPartition(topic, 0)
    with broker.client() as client:
        client.admin.delete_records(topic, {0: 5})
        edges = {2: f"starts at {5}", 2_000: f"ends at {10}"}
        for requested, edge in edges.items():
            with client.consumer(partitions=[at]) as consumer:
                consumer.seek(at, requested)
                with pytest.raises(OffsetOutOfRange) as caught:
                    next(iter(consumer))
            told(
                caught.value,
                "T041",
                rf"asked for {requested:,}, but {topic}\[0\] {edge}",
                **{"topic": topic, "partition": 0, "requested": requested, "start": 5, "end": 10},
            )
            assert caught.value.hint == "Set on_out_of_range='earliest'"
        with pytest.raises(tailrace.OffsetOutOfRange) as caught:
            client.admin.delete_records(topic, {0: 99})
        told(caught.value, "T041", rf"asked for 99, but {topic}\[0\] ends at 10")
