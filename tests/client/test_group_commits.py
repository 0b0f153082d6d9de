"""What a member of a group commits, against a real broker, on both event loops (C12, R37)."""

import anyio
import pytest

import tailrace
from tailrace.protocol.errors import ConfigError, TopicNotFound, UsageError
from tailrace.protocol.shapes import TopicPartition
from tailrace.testing import Broker
from tests.client.grouping import member, rest, take, values
from tests.client.test_consumer import numbers, seeded
from tests.client.world import Run, until


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


def test_batches_and_streams_of_a_closed_consumer_commit_nothing(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        async with member(broker, topic) as consumer:
            batch = await consumer.batches(max_records=5).__anext__()
        with pytest.raises(UsageError, match="T055: Consumer is closed"):
            await batch.commit()
        async with member(broker, topic) as consumer:
            stream = await consumer.partitions().__anext__()
        with pytest.raises(UsageError, match="T055: Consumer is closed"):
            await stream.commit()

    run(main)


def test_commit_works_where_reading_has_ended_for_good(run: Run, broker: Broker) -> None:
    topic, other = seeded(broker, numbers(10)), seeded(broker, numbers(10))

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(topic, other, group=f"g-{topic}") as consumer:
                found = await take(consumer, 12)
                await client.admin.delete_topic(other)

                async def go_on() -> None:
                    while len(found) < 30:  # what was fetched before may come before the error
                        found.extend(await take(consumer, 1))

                with pytest.raises(TopicNotFound, match="T010"):
                    await go_on()
                kept = max(r.offset for r in found if r.topic == topic)
                await consumer.commit()
                assert (await consumer.committed())[TopicPartition(topic, 0)] == kept + 1

    run(main)


def test_deleted_topic_is_told_to_members_that_have_none_of_it(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        async with member(broker, topic, "a") as busy, member(broker, topic, "b") as idle:
            async with tailrace.connect(broker.url) as client:
                await client.admin.delete_topic(topic)
            for consumer in (busy, idle):
                with pytest.raises(TopicNotFound, match="T010"):
                    await take(consumer, 20)

    run(main)


def test_cancelled_consumer_still_commits_and_leaves(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            with anyio.CancelScope() as scope:
                async with client.consumer(topic, group=f"g-{topic}") as consumer:
                    await take(consumer, 5)
                    scope.cancel()
                    await anyio.sleep_forever()
            assert (await rest(broker, topic))[0] == 4

    run(main)


def test_cancelled_with_its_client_it_still_commits_and_leaves(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with (
                tailrace.connect(broker.url) as client,
                client.consumer(topic, group=f"g-{topic}") as consumer,
            ):
                await take(consumer, 5)
                began = anyio.current_time()
                scope.cancel()
                await anyio.sleep_forever()
        assert anyio.current_time() - began < 1.0
        assert (await rest(broker, topic))[0] == 4

    run(main)
    assert "not committed" not in caplog.text


def test_close_ends_in_time_while_nobody_answers(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with Broker() as own:
        topic = seeded(own, numbers(10))

        async def main() -> None:
            async with member(own, topic, close_timeout=0.2) as consumer:
                await take(consumer, 5)
                with own.faults.black_hole():
                    began = anyio.current_time()
                    await consumer.aclose()
                    assert anyio.current_time() - began < 1.0

        run(main)
        assert f"offsets of {topic}[0] were not committed" in caplog.text
