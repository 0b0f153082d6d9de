"""What a member of a group promises, against a real broker, on both event loops (C12-C18, R37)."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import tailrace
from tailrace.client.records import Record, TopicPartition
from tailrace.protocol.errors import ConfigError, OffsetOutOfRange, TopicNotFound, UsageError
from tailrace.testing import Broker
from tests.client.test_consumer import numbers, seeded
from tests.client.world import Run, until

Records = Sequence[Record[Any, Any]]


def values(records: Records) -> list[int]:
    return sorted(int(record.value or b"") for record in records)


@asynccontextmanager
async def member(
    broker: Broker, topic: str, name: str = "a", **options: Any
) -> AsyncIterator[tailrace.Consumer[Any, Any]]:
    """A consumer of group ``g-<topic>``, on a client of its own."""
    given: dict[str, Any] = {"group": f"g-{topic}", "close_timeout": 2.0, "commit_interval": 60.0}
    async with tailrace.connect(broker.url, client_id=name) as client:
        async with client.consumer(topic, **given | options) as consumer:
            yield consumer


async def rest(broker: Broker, topic: str) -> list[int]:
    """The offsets that the group reads next, of a topic with one partition."""
    async with member(broker, topic, stop_at_end=True, commit="manual") as consumer:
        return [record.offset async for record in consumer]


async def take(consumer: tailrace.Consumer[Any, Any], count: int) -> list[Record[Any, Any]]:
    """So many records, the last one of them in hand."""
    records = consumer.__aiter__()
    return [await records.__anext__() for _ in range(count)]


# ── what is committed (C12) ──────────────────────────────────────────────────────────────────


def test_what_was_read_to_its_end_is_not_read_again(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(100), 3)

    async def main() -> None:
        async with member(broker, topic, stop_at_end=True) as consumer:
            assert values([record async for record in consumer]) == list(range(100))
        async with member(broker, topic, stop_at_end=True) as consumer:
            assert [record async for record in consumer] == []
            assert sum(offset or 0 for offset in (await consumer.committed()).values()) == 100

    run(main)


def test_record_in_hand_comes_again_after_break(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        async with member(broker, topic) as consumer:
            async for record in consumer:
                if record.offset == 3:
                    break
        assert (await rest(broker, topic))[0] == 3

    run(main)


def test_record_in_hand_comes_again_after_an_error_that_leaves_unchanged(
    run: Run, broker: Broker
) -> None:
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        async def fail() -> None:
            async with member(broker, topic) as consumer:
                async for record in consumer:
                    if record.offset == 5:
                        raise ValueError("at 5")

        with pytest.raises(ValueError, match="at 5"):
            await fail()
        assert (await rest(broker, topic))[0] == 5

    run(main)


def test_loop_that_is_entered_again_has_processed_what_it_left(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        async with member(broker, topic) as consumer:
            await take(consumer, 3)
            await take(consumer, 1)
        assert (await rest(broker, topic))[0] == 3

    run(main)


def test_seek_and_pause_do_not_make_the_record_in_hand_processed(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))
    at = TopicPartition(topic, 0)

    async def main() -> None:
        async with member(broker, topic) as consumer:
            await take(consumer, 3)
            consumer.pause(at)
            consumer.resume(at)
            await consumer.seek(at, 8)
        assert (await rest(broker, topic))[0] == 2
        async with member(broker, topic) as consumer:
            await consumer.seek(at, 8)
            assert [record.offset for record in await take(consumer, 2)] == [8, 9]
        assert await rest(broker, topic) == [9]

    run(main)


def test_commit_takes_the_record_in_hand_too(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))
    at = TopicPartition(topic, 0)

    async def main() -> None:
        async with member(broker, topic, commit="manual") as consumer:
            assert await consumer.committed() == {at: None}
            await take(consumer, 4)
            assert consumer.health().last_commit is None
            await consumer.commit(metadata="four")
            assert await consumer.committed() == {at: 4}
            assert consumer.health().last_commit is not None
            await take(consumer, 3)
            await consumer.commit({at: 6})
            await take(consumer, 1)
        assert (await rest(broker, topic))[0] == 6

    run(main)


def test_manual_commits_nothing_by_itself(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        async with member(broker, topic, commit="manual", stop_at_end=True) as consumer:
            assert len([record async for record in consumer]) == 10
        assert len(await rest(broker, topic)) == 10

    run(main)


def test_commit_interval_zero_commits_before_the_next_record(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))
    at = TopicPartition(topic, 0)

    async def main() -> None:
        async with member(broker, topic, commit_interval=0.0) as consumer:
            for count in range(5):
                await take(consumer, 1)
                assert (await consumer.committed())[at] == (count or None)

    run(main)


def test_commits_go_out_every_commit_interval(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        async with member(broker, topic, commit_interval=0.01) as consumer:
            await take(consumer, 4)
            await until(lambda: consumer.health().last_commit is not None)
            assert await consumer.committed() == {TopicPartition(topic, 0): 3}

    run(main)


def test_batch_in_hand_comes_again(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(100))

    async def main() -> None:
        async with member(broker, topic) as consumer:
            async for batch in consumer.batches(max_records=10):
                if batch.first_offset == 30:
                    break
        assert (await rest(broker, topic))[0] == 30
        async with member(broker, topic) as consumer:
            batches = consumer.batches(max_records=10)
            await (await batches.__anext__()).commit()
            await (await batches.__anext__())[:5].commit()
        assert (await rest(broker, topic))[0] == 45

    run(main)


def test_commit_tells_what_is_known_of_the_record_before(run: Run, broker: Broker) -> None:
    topic = seeded(broker, [])
    at = TopicPartition(topic, 0)

    async def main() -> None:
        async with member(broker, topic, commit="manual") as consumer:
            async with tailrace.connect(broker.url) as client, client.producer() as producer:
                for number in range(3):
                    sent = await producer.send(topic, b"%d" % number, timestamp=1_000 + number)
            assert consumer.feed.group is not None
            known = consumer.feed.group.member.committed

            async def stored() -> tuple[int, int, bool, bool]:
                found = (await known([at], timeout=1.0))[at]
                assert found is not None
                near = abs(found.append_time - sent.append_time) < 5_000
                return found.offset, found.timestamp, near, found.leader_epoch >= 0

            await take(consumer, 2)
            await consumer.commit()
            assert await stored() == (2, 1_001, True, True)
            await take(consumer, 1)
            await consumer.commit()
            assert await stored() == (3, 1_002, True, True)

    run(main)


def test_commits_that_cannot_be(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))
    at, other = TopicPartition(topic, 0), TopicPartition(topic, 7)

    async def main() -> None:
        async with member(broker, topic, commit="manual") as consumer:
            await take(consumer, 5)
            with pytest.raises(UsageError, match=r"T055: .*\[7\] is not assigned"):
                await consumer.commit({other: 1})
            with pytest.raises(ConfigError, match=r"T082.*offsets=-1"):
                await consumer.commit({at: -1})
            with pytest.raises(ConfigError, match=r"T082.*metadata"):
                await consumer.commit(metadata="x" * 4_097)
            await consumer.commit()
            with pytest.raises(ConfigError, match="T082"):
                await consumer.commit({at: 2})
            assert await consumer.committed() == {at: 5}
        with pytest.raises(UsageError, match="T055"):
            await consumer.commit()

    run(main)


# ── where it starts (C15, C17, C18) ──────────────────────────────────────────────────────────


def test_typo_is_told_and_makes_no_group(run: Run, broker: Broker) -> None:
    async def main() -> None:
        with pytest.raises(TopicNotFound, match="T010: topic 'typo' does not exist"):
            async with member(broker, "typo"):
                pass

    run(main)


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
