"""What a real broker says when it is asked why."""

import os
from pathlib import Path

import pytest
import trio

from tailrace.broker.server import Server
from tailrace.protocol import texts
from tailrace.protocol.batch import header_seed, patch
from tailrace.protocol.batch_header import PAYLOAD_FROM, PREFIX_BYTES
from tailrace.protocol.errors import (
    GroupNotFound,
    InputError,
    InvalidName,
    PartitionNotFound,
    TailraceError,
    TopicNotFound,
)
from tailrace.protocol.messages import (
    DeleteRecordsRequest,
    DeleteRecordsResponse,
    ExplainRequest,
    ExplainResponse,
    ProduceRequest,
    ProduceResponse,
    StartOffset,
)
from tests.broker.harness import Client, batch, connected, produce_request, run, serving
from tests.broker.members import Member, commit, committing
from tests.broker.test_flusher import gated


async def explain(
    client: Client,
    topic: str | None = None,
    partition: int | None = None,
    offset: int | None = None,
    group: str | None = None,
) -> ExplainResponse:
    request = ExplainRequest(topic, partition, offset, group)
    return (await client.ask(request, ExplainResponse))[0]


async def delete_before(client: Client, topic: str, offset: int) -> None:
    request = DeleteRecordsRequest(topic, (StartOffset(0, offset),))
    await client.ask(request, DeleteRecordsResponse)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ((None, None, None, None), InputError),
        ((None, 1, None, "g"), InputError),
        ((None, None, 7, None), InputError),
        (("orders", None, 7, None), InputError),
        (("orders", 0, -1, None), InputError),
        (("orders", None, None, "\0"), InvalidName),
        (("nosuch", None, None, None), TopicNotFound),
        (("nosuch", 0, 0, None), TopicNotFound),
        (("orders", 7, None, None), PartitionNotFound),
        (("orders", -1, 3, None), PartitionNotFound),
        ((None, None, None, "nobody"), GroupNotFound),
        (("orders", 0, 0, "nobody"), GroupNotFound),
    ],
)
def test_what_cannot_be_explained_is_refused(
    tmp_path: Path,
    asked: tuple[str | None, int | None, int | None, str | None],
    error: type[TailraceError],
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            await client.create("orders")
            with pytest.raises(error):
                await explain(client, *asked)
            assert (await explain(client, "orders")).verdict == "ok"

    run(main)


def test_who_moved_the_start_is_told_over_a_restart_where_it_shows(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            await client.produce(topic_id, [b"x"] * 10)
            await delete_before(client, "orders", 4)
            found = await explain(client, "orders", 0, 3)
            assert (found.verdict, found.facts["log_start_moved_by"]) == ("expired", "deleted")
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            found = await explain(client, "orders", 0, 3)
            assert (found.verdict, found.facts["log_start_moved_by"]) == ("expired", "deleted")

    run(main)


@pytest.mark.parametrize(
    ("retention", "said"), [("forever", "Retention (64KiB)"), ("7d", "Retention (7d and 64KiB)")]
)
def test_what_retention_by_size_removed_is_not_told_as_a_matter_of_age(
    tmp_path: Path, retention: str, said: str
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            sizes = {"retention_size": "64KiB", "segment_size": "64KiB"}
            topic_id = await client.create("orders", 1, retention=retention, **sizes)
            for _ in range(4):
                await client.produce(topic_id, [os.urandom(40_000)])
            await commit(client, "g", committing(topic_id, 0, 0))
            await server.clean()
            found = await explain(client, "orders", 0, 0)
            assert f"{said} removed it." in found.summary
            found = await explain(client, group="g")
            kept = said.removeprefix("Retention (").removesuffix(")")
            assert f"gone unread (retention {kept})." in found.summary

    run(main)


def test_who_waits_behind_the_sync_of_others_is_told_of_it(tmp_path: Path) -> None:
    gates, change = gated()

    async def main() -> None:
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders", partitions=2)
            waiting = await client.send(*sending(topic_id, 0, acks=-1))
            await client.metadata()  # answered, so its round is under way
            await client.wait(await client.send(*sending(topic_id, 1, acks=1)))
            found = await explain(client, "orders", 1, 0)
            gates[0].open.set()
            await client.wait(waiting)
            assert found.verdict == "not_committed"
            assert "a sync has been under way for" in found.summary

    run(main)


def sending(topic_id: bytes, partition: int, *, acks: int) -> tuple[ProduceRequest, bytes]:
    entry = batch(topic_id, [b"a"], partition)
    return produce_request(topic_id, [entry], partition, acks=acks), entry


def test_a_batch_that_cannot_be_decoded_is_no_readable_record(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            entry = junk(topic_id)
            request: ProduceRequest = produce_request(topic_id, [entry], 0, -1)
            answer, _ = await client.ask(request, ProduceResponse, bytes(entry))
            assert answer.results[0].error is None
            found = await explain(client, "orders", 0, 1)
            assert found.verdict == "damaged"
            assert "it cannot be decoded" in found.summary

    run(main)


def junk(topic_id: bytes) -> bytes:
    """A batch whose checksums hold over bytes that are no columns."""
    from xxhash import xxh3_64_intdigest

    entry = bytearray(batch(topic_id, [b"a", b"b", b"c"]))
    at = PREFIX_BYTES + 61
    entry[at:] = b"\xff" * (len(entry) - at)
    entry[8:16] = xxh3_64_intdigest(memoryview(entry)[PAYLOAD_FROM:]).to_bytes(8)
    seed = header_seed(topic_id, 0)
    patch(entry, seed=seed, base_offset=0, leader_epoch=-1, append_time=-1)
    return bytes(entry)


def fail_partition(server: Server) -> None:
    node = server._node
    assert node is not None
    for partition in node.shelf:
        if partition.topic == "orders":
            reason = "Input/output error"
            partition.fail(texts.partition_offline("orders", partition.number, reason=reason))


def test_an_offline_partition(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            await client.produce(topic_id, [b"x"] * 10)
            await Member(client, "m1").join()
            fail_partition(server)
            for place in ((None, None), (0, None), (0, 5)):
                found = await explain(client, "orders", *place)
                assert (found.verdict, found.next) == ("offline", "tailrace cluster health")
                assert "Input/output error" in found.summary
            found = await explain(client, group="g")
            assert "orders[0] is offline" in found.summary
            assert found.next == "tailrace explain orders:0"

    run(main)


def test_a_partition_that_waits_for_its_old_owner(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            serving(tmp_path, {"group.assign_delay": "0ms"}) as (_, ready),
            connected(ready, "old-app") as old,
            connected(ready, "new-app") as new,
        ):
            await old.create("orders", 2)
            await Member(old, "m1").join()
            await Member(new, "m2").beat()
            found = await explain(old, group="g")
            assert "old-app at 127.0.0.1 still has it, and has 30 s left" in found.summary
            assert found.facts["state"] == "assigning"
            assert found.next == "tailrace group describe g"

    run(main)


def test_a_topic_that_members_wait_for_in_vain(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            await client.create("orders")
            await client.create("refunds")
            await Member(client, "m1", topics=("ordres", "refunds")).join()
            found = await explain(client, group="g")
            assert "'ordres', which does not exist; similar: orders." in found.summary
            await client.delete("refunds")
            gone = ["ordres", "refunds"]
            while (await explain(client, group="g")).facts["missing_topics"] != gone:
                await trio.lowlevel.checkpoint()

    run(main)
