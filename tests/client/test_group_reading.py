"""How partitions come and go, against a real broker, on both event loops (C14-C18)."""

import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import tailrace
from tailrace.client.records import Record
from tailrace.protocol.errors import OffsetOutOfRange, PartitionLost, TopicNotFound
from tailrace.protocol.shapes import TopicPartition
from tailrace.testing import Broker
from tests.client.grouping import member, rest, take, values
from tests.client.test_consumer import numbers, seeded
from tests.client.world import Run, until

# ── where it starts (C15, C17, C18) ──────────────────────────────────────────────────────────


def test_typo_is_told_and_makes_no_group(run: Run, broker: Broker) -> None:
    async def main() -> None:
        with pytest.raises(TopicNotFound, match="T010: topic 'typo' does not exist"):
            async with member(broker, "typo"):
                pass

    run(main)


@pytest.mark.provokes("T073")
def test_start_is_told_once_and_holds_before_anything_is_read(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tailrace.client")
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        async with member(broker, topic, start="latest"):
            pass
        broker.seed(topic, [b"new"])
        async with member(broker, topic, start="latest") as consumer:
            assert [record.value for record in await take(consumer, 1)] == [b"new"]

    run(main)
    told = [r.getMessage() for r in caplog.records if getattr(r, "code", "") == "T073"]
    assert told == [f"T073: group 'g-{topic}' has no commits; starting at {topic}[0]@10."]


@pytest.mark.provokes("T041")
def test_committed_records_that_expired_are_counted(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        async with member(broker, topic) as consumer:
            await take(consumer, 3)
        async with tailrace.connect(broker.url) as client:
            await client.admin.delete_records(topic, {0: 7})
        async with member(broker, topic) as consumer:
            with pytest.raises(OffsetOutOfRange) as caught:
                await take(consumer, 1)
            assert str(caught.value) == (
                f"T041: committed 2, but {topic}[0] starts at 7: 5 records expired (retention 7d). "
                f"Set on_out_of_range='earliest', or: tailrace group reset g-{topic} --to start"
            )
        async with member(broker, topic, on_out_of_range="earliest") as consumer:
            assert [record.offset for record in await take(consumer, 2)] == [7, 8]
        assert (await rest(broker, topic))[0] == 8

    run(main)


# ── partitions come and go (C14) ─────────────────────────────────────────────────────────────


def test_members_share_the_partitions_and_lose_nothing(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(1_000), 4)
    found: list[Record[Any, Any]] = []

    async def main() -> None:
        async def read(name: str) -> None:
            async with member(broker, topic, name, idle_timeout=0.2) as consumer:
                async for record in consumer:
                    found.append(record)
                    if len(found) % 50 == 0:
                        await anyio.sleep(0.001)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, "a")
            await until(lambda: len(found) > 100)
            tasks.start_soon(read, "b")
        assert values(found) == list(range(1_000)), "each once: nobody was too slow"

    run(main)


def test_record_in_hand_finishes_before_its_partition_goes(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(100), 2)

    async def main() -> None:
        async with member(broker, topic, "a") as a:
            (first,) = await take(a, 1)
            async with member(broker, topic, "b") as b:
                await until(lambda: len(a.assignment) + len(b.assignment) < 2 or bool(b.assignment))
                mine = TopicPartition(topic, first.partition)
                if mine in a.assignment:  # the other one went, with nothing in hand
                    await until(lambda: len(b.assignment) == 1)
                    return
                assert mine not in b.assignment
                (second,) = await take(a, 1)
                assert second.partition != first.partition
                await until(lambda: mine in b.assignment)
                assert (await take(b, 1))[0].offset == first.offset + 1

    run(main)


def test_other_partitions_go_on_while_one_is_in_hand(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(3_000), 4)

    async def main() -> None:
        counts: dict[int, int] = {}
        held: dict[int, anyio.Event] = {}

        async def read(stream: tailrace.PartitionStream[Any, Any]) -> None:
            async for _ in stream:
                counts[stream.partition] = counts.get(stream.partition, 0) + 1
                if counts[stream.partition] == 10 and stream.partition not in held:
                    held[stream.partition] = anyio.Event()
                    await held[stream.partition].wait()
                await anyio.lowlevel.checkpoint()

        async with member(broker, topic, "a") as a, anyio.create_task_group() as tasks:

            async def streams() -> None:
                async for stream in a.partitions():
                    tasks.start_soon(read, stream)

            tasks.start_soon(streams)
            await until(lambda: len(held) == 4)
            async with member(broker, topic, "b") as b:
                await until(lambda: len(a.assignment) == 2)
                kept = min(at.partition for at in a.assignment)
                held[kept].set()
                await until(lambda: counts[kept] > 100)
                assert b.assignment == frozenset(), "two records are still in hand"
                for event in held.values():
                    event.set()
                await until(lambda: len(b.assignment) == 2)
                assert a.assignment.isdisjoint(b.assignment)
            tasks.cancel_scope.cancel()

    run(main)


def test_stream_ends_with_its_partition_and_comes_anew(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(100), 2)

    async def main() -> None:
        begun: list[int] = []
        ended: list[int] = []

        async def read(stream: tailrace.PartitionStream[Any, Any]) -> None:
            begun.append(stream.partition)
            async for _ in stream:
                pass
            ended.append(stream.partition)

        async with member(broker, topic, "a") as a, anyio.create_task_group() as tasks:

            async def streams() -> None:
                async for stream in a.partitions():
                    tasks.start_soon(read, stream)

            tasks.start_soon(streams)
            await until(lambda: sorted(begun) == [0, 1])
            async with member(broker, topic, "b") as b:
                await until(lambda: len(ended) == 1)
                await until(lambda: len(b.assignment) == 1)
            await until(lambda: len(begun) == 3)
            assert begun[2] == ended[0]
            tasks.cancel_scope.cancel()

    run(main)


def test_streams_commit_for_themselves(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(100), 2)

    async def main() -> None:
        async with member(broker, topic, commit="manual") as consumer:
            async for stream in consumer.partitions():
                for _ in range(5):
                    await stream.__anext__()
                await stream.commit(3 if stream.partition else None)
                if stream.partition == 1:
                    break
            committed = await consumer.committed()
            assert committed == {TopicPartition(topic, 0): 5, TopicPartition(topic, 1): 3}

    run(main)


def test_paused_partition_comes_back_running(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(200), 2)

    async def main() -> None:
        async with member(broker, topic, "a", idle_timeout=0.1) as a:
            a.pause()
            assert [record async for record in a] == []
            async with member(broker, topic, "b") as b:
                await until(lambda: len(b.assignment) == 1)
                (gone,) = b.assignment
            await until(lambda: gone in a.assignment)
            found = [record async for record in a]
            assert {record.partition for record in found} == {gone.partition}, "the other rests"

    run(main)


@pytest.mark.provokes("T071")
def test_idle_member_waits_says_so_and_takes_over(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        async with member(broker, topic, "b") as b:
            async with member(broker, topic, "a") as a:
                await until(lambda: "T071" in caplog.text)
                idle, busy = (b, a) if a.assignment else (a, b)
                assert idle.health().state == "ok"
                assert (idle.assignment, len(busy.assignment)) == (frozenset(), 1)
            await until(lambda: len(b.assignment) == 1)
            assert len(await take(b, 10)) == 10

    run(main)
    assert (
        f"of group 'g-{topic}' is idle: 1 partitions for 2 members. Stop a member." in caplog.text
    )


def test_idle_member_ends_by_idle_timeout_and_stop_at_end(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        async with member(broker, topic, "a") as busy:
            await take(busy, 1)
            async with member(broker, topic, "b", idle_timeout=0.05) as idle:
                assert [record async for record in idle] == []
            async with member(broker, topic, "c", idle_timeout=0.05) as idle:
                assert [stream async for stream in idle.partitions()] == []
            async with member(broker, topic, "d", stop_at_end=True) as idle:
                assert [record async for record in idle] == []
            async with member(broker, topic, "e", stop_at_end=True) as idle:
                assert [stream async for stream in idle.partitions()] == []

    run(main)


def test_rebalances_are_logged_and_told_to_hooks(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tailrace.client")
    topic = seeded(broker, numbers(10), 2)

    async def main() -> None:
        told: list[tailrace.Event] = []
        async with tailrace.connect(broker.url, client_id="a") as client:
            client.on("rebalanced", told.append)
            async with client.consumer(topic, group=f"g-{topic}"):
                async with member(broker, topic, "b"):
                    await until(lambda: len(told) >= 2)
        assert told[1].reason == "member joined"
        (moved,) = told[1].details["moved"].items()  # type: ignore[attr-defined]
        assert moved[0] == "b"

    run(main)
    assert f"rebalanced: {topic}[0], {topic}[1] -> a (member joined), " in caplog.text
    assert " -> b (member joined), " in caplog.text


@pytest.mark.provokes("T072")
def test_quiet_end_names_the_group(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.client.reading.QUIET_S", 0.02)
    caplog.set_level(logging.INFO, "tailrace.client")
    topic = seeded(broker, numbers(4))

    async def main() -> None:
        async with member(broker, topic, idle_timeout=0.1) as consumer:
            assert len([record async for record in consumer]) == 4

    run(main)
    assert f"T072: at the end of {topic}[0]@4; group 'g-{topic}' is caught up." in caplog.text


def test_member_whose_session_ended_is_told_once_and_reads_on(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(100), 2)

    async def main() -> None:
        async with member(broker, topic) as consumer:
            await take(consumer, 30)
            assert consumer.feed.group is not None
            broker.expire_member(f"g-{topic}", consumer.feed.group.member.member_id)
            with pytest.raises(PartitionLost, match="T040") as caught:
                await take(consumer, 101)
            assert caught.value.retriable
            assert caught.value.offsets
            await until(lambda: len(consumer.assignment) == 2)
            assert {r.offset for r in await take(consumer, 100)} >= {0, 1}, "from the last commit"

    run(main)


@pytest.mark.parametrize("instance_id", [None, "static"])
def test_partition_that_stands_still_goes_to_another_member(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture, instance_id: str | None
) -> None:
    topic = seeded(broker, numbers(20), 2)

    async def main() -> None:
        options: dict[str, Any] = {"max_processing": 0.1, "instance_id": instance_id}
        async with member(broker, topic, "a", **options) as a:
            (stuck,) = await take(a, 1)
            async with member(broker, topic, "b", stop_at_end=False) as b:
                seen: set[tuple[int, int]] = set()
                while (stuck.partition, stuck.offset) not in seen:
                    seen |= {(r.partition, r.offset) for r in await take(b, 1)}
            with pytest.raises(PartitionLost, match=r"max_processing 0\.1 s"):
                await take(a, 1)

    run(main)
    assert f"handing back {topic}[" in caplog.text
