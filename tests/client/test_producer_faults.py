"""What a producer promises when things go wrong: C1 to C9, one fault at a time."""

import anyio
import pytest

from tailrace.protocol import texts
from tailrace.protocol.errors import (
    BatchRefused,
    FlushError,
    NotEnoughReplicas,
    SendManyError,
    SendTimeout,
    TopicNotFound,
)
from tests.client.fake_broker import Do, Topic
from tests.client.world import Run, World, until


def numbers(topic: Topic, partition: int = 0) -> list[int]:
    return [int(value) for value in topic.logs[partition]]


def below_min_isr() -> NotEnoughReplicas:
    return texts.not_enough_replicas(
        "orders", 0, have=1, need=2, missing=[("n2", "down")], waited_s=0.1
    )


def out_of_order() -> Exception:
    return texts.out_of_order_sequence("orders", 0, producer_id=1, epoch=0, sequence=5, expected=0)


@pytest.mark.parametrize("fault", [Do.LOSE_ANSWER, Do.LOSE_REQUEST])
def test_a_broken_connection_neither_loses_nor_doubles_records(
    run: Run, world: World, fault: Do
) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer(linger=0.0) as producer:
            await producer.send("orders", b"0")
            world.broker.script.extend([Do.SERVE, fault, Do.SERVE, fault])
            deliveries = [await producer.enqueue("orders", b"%d" % n) for n in range(1, 200)]
            assert [(await d).offset for d in deliveries] == list(range(1, 200))

    run(main)
    assert numbers(topic) == list(range(200))


def test_batches_in_flight_keep_their_order_when_the_first_is_refused(
    run: Run, world: World
) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer(batch_bytes=200) as producer:
            await producer.send("orders", b"0")
            world.broker.script.extend([below_min_isr(), Do.SERVE, Do.SERVE, Do.SERVE])
            deliveries = [await producer.enqueue("orders", b"%d" % n) for n in range(1, 60)]
            assert [(await d).offset for d in deliveries] == list(range(1, 60))

    run(main)
    assert numbers(topic) == list(range(60))
    assert world.broker.producer_ids == 1


def test_a_full_disk_is_asked_again_when_it_said_each_time(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not only when some other deadline wakes the producer (here: a request's, of 1 s)."""
    monkeypatch.setattr("tailrace.client.retry.FIRST_MAX_S", 0.002)
    topic = world.broker.create("orders")
    full = texts.storage_full(
        "orders", 0, broker="n1", has="1 B free", limit="min_free 5%", retry_after_s=0.002
    )

    async def main() -> None:
        async with world.client() as client, client.producer(linger=0.0) as producer:
            await producer.send("orders", b"0")
            world.broker.script.extend([full] * 4)
            with anyio.fail_after(0.5):
                await producer.send("orders", b"1")

    run(main)
    assert numbers(topic) == [0, 1]


def test_answers_out_of_order_change_nothing(run: Run, world: World) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer(batch_bytes=200) as producer:
            await producer.send("orders", b"0")
            world.broker.script.extend([Do.HOLD] * 3)
            deliveries = [producer.enqueue_nowait("orders", b"%d" % n) for n in range(1, 40)]
            assert world.broker.held == 3
            world.broker.release([2, 0, 1])
            assert [(await d).offset for d in deliveries] == list(range(1, 40))

    run(main)
    assert numbers(topic) == list(range(40))


def test_a_moved_leader_is_looked_up_again(run: Run, world: World) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            asked = len(world.broker.requests)
            world.broker.script.append(texts.not_leader("orders", 0, broker="n1"))
            assert (await producer.send("orders", b"1")).offset == 1
            assert len(world.broker.requests) > asked + 2

    run(main)
    assert numbers(topic) == [0, 1]


def test_a_lost_producer_id_is_renewed_and_logged(
    run: Run, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    topic = world.broker.create("orders", 2)

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            await producer.send("orders", b"0", partition=0)
            await producer.send("orders", b"0", partition=1)
            world.broker.forget_producers()
            assert (await producer.send("orders", b"1", partition=0)).offset == 1
            assert (await producer.send("orders", b"1", partition=1)).offset == 1
            assert (await producer.send("orders", b"2", partition=0)).offset == 2

    run(main)
    assert [numbers(topic, p) for p in (0, 1)] == [[0, 1, 2], [0, 1]]
    assert world.broker.producer_ids == 2, "both partitions go on under one new id"
    assert "producer id 1 lost its place in orders[0] (T039" in caplog.text


def test_what_follows_a_batch_that_failed_for_good_still_arrives(run: Run, world: World) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer(batch_bytes=200) as producer:
            await producer.send("orders", b"0")
            world.broker.script.append(texts.batch_refused("orders", 0, reason="test"))
            deliveries = [producer.enqueue_nowait("orders", b"%d" % n) for n in range(1, 40)]
            with pytest.raises(BatchRefused, match="refused: test; nothing was written"):
                await deliveries[0]
            failed = 0
            for delivery in deliveries:
                try:
                    await delivery
                except BatchRefused:
                    failed += 1
            assert failed == 11

    run(main)
    assert numbers(topic) == [0, *range(12, 40)]
    assert world.broker.producer_ids == 2


def test_a_record_that_was_never_sent_times_out_as_surely_not_written(
    run: Run, world: World
) -> None:
    world.broker.create("orders", leaderless=True)

    async def main() -> None:
        async with world.client() as client, client.producer(timeout=0.3) as producer:
            with pytest.raises(
                SendTimeout, match=r"after 0 attempts.*nothing was written"
            ) as caught:
                await producer.send("orders", b"0")
            assert not caught.value.maybe_written
            assert caught.value.elapsed >= 0.3
            world.broker.topics["orders"].leaderless = False
            assert (await producer.send("orders", b"1")).offset == 0

    run(main)


@pytest.mark.parametrize("fault", [Do.SWALLOW, Do.LOSE_ANSWER, Do.HOLD])
def test_a_record_sent_into_the_dark_times_out_as_maybe_written(
    run: Run, world: World, fault: Do
) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with (
            world.client(request_timeout=0.02) as client,
            client.producer(timeout=0.05) as producer,
        ):
            await producer.send("orders", b"0")
            world.broker.script.extend([fault] * 1_000)
            with pytest.raises(SendTimeout, match="may have been written") as caught:
                await producer.send("orders", b"1")
            assert caught.value.maybe_written
            assert caught.value.attempts >= 1
            world.broker.script.clear()
            world.broker.release()
            await producer.send("orders", b"2")

    run(main)
    assert numbers(topic) in ([0, 2], [0, 1, 2])


def test_a_refusal_that_lasts_is_named_by_the_timeout(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer(timeout=0.05) as producer:
            await producer.send("orders", b"0")
            world.broker.script.extend([below_min_isr() for _ in range(1_000)])
            with pytest.raises(SendTimeout, match=r"T030.*nothing was written") as caught:
                await producer.send("orders", b"1")
            assert isinstance(caught.value.last_error, NotEnoughReplicas)
            world.broker.script.clear()
            await producer.send("orders", b"2")

    run(main)
    assert numbers(world.broker.topics["orders"]) == [0, 2]


def test_records_accepted_later_do_not_share_an_early_timeout(run: Run, world: World) -> None:
    world.broker.create("orders", leaderless=True)

    async def main() -> None:
        async with world.client() as client, client.producer(timeout=0.5) as producer:
            first = producer.enqueue_nowait("orders", b"0")
            await anyio.sleep(0.2)
            second = producer.enqueue_nowait("orders", b"1")
            with pytest.raises(SendTimeout):
                await first
            assert not second.done()
            with pytest.raises(SendTimeout) as caught:
                await second
            assert caught.value.elapsed >= 0.5

    run(main)


def test_a_failure_nobody_awaited_is_raised_by_flush_once(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            world.broker.script.append(texts.batch_refused("orders", 0, reason="test"))
            deliveries = [producer.enqueue_nowait("orders", b"x") for _ in range(3)]
            with pytest.raises(BatchRefused):
                await deliveries[1]
            with pytest.raises(
                FlushError, match="2 records enqueued since the last flush"
            ) as caught:
                await producer.flush()
            assert (caught.value.failed, caught.value.first.code) == (2, "T028")
            await producer.flush()

    run(main)


def test_send_many_names_the_records_that_failed(run: Run, world: World) -> None:
    topic = world.broker.create("orders", 2, record_bytes_max=50)

    async def main() -> None:
        async with world.client() as client, client.producer(batch_bytes=200) as producer:
            await producer.send("orders", b"0", partition=0)
            world.broker.script.append(texts.batch_refused("orders", 0, reason="test"))
            values = [b"%d" % n for n in range(1, 12)] + [b"x" * 51] + [b"%d" % 12]
            with pytest.raises(SendManyError) as caught:
                await producer.send_many("orders", values, partition=0)
            failures, metadata = caught.value.failures, caught.value.metadata
            assert {f.code for f in failures.values()} == {"T021", "T028"}
            assert failures[11].code == "T021"
            for place, found in enumerate(metadata):
                assert (found is None) == (place in failures)
                if found is not None:
                    assert topic.logs[0][found.offset] == values[place]

    run(main)


def test_a_cancelled_enqueue_was_not_accepted(run: Run, world: World) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer(buffer_bytes=100) as producer:
            await producer.send("orders", b"0")
            world.broker.script.append(Do.HOLD)
            kept = producer.enqueue_nowait("orders", b"1" * 84)
            with anyio.move_on_after(0.02):
                await producer.enqueue("orders", b"2")
            world.broker.release()
            await producer.send("orders", b"3")
            assert kept.done()

    run(main)
    assert topic.logs[0] == [b"0", b"1" * 84, b"3"]


def test_a_cancelled_flush_and_delivery_drop_nothing(run: Run, world: World) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            world.broker.script.append(Do.HOLD)
            delivery = producer.enqueue_nowait("orders", b"1")
            with anyio.move_on_after(0.01):
                await producer.flush()
            with anyio.move_on_after(0.01):
                await delivery
            world.broker.release()
            assert (await delivery).offset == 1

    run(main)
    assert numbers(topic) == [0, 1]


def test_an_unknown_topic_is_an_error_of_the_call_or_of_the_delivery(
    run: Run, world: World
) -> None:
    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            with pytest.raises(TopicNotFound, match="auto-create is off"):
                await producer.send("missing", b"x")
            delivery = producer.enqueue_nowait("missing", b"x")
            with pytest.raises(TopicNotFound):
                await delivery
            world.broker.auto_create = True
            assert (await producer.send("missing", b"x")).offset == 0

    run(main)


def test_a_topic_made_again_under_its_name_takes_the_records(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            assert (await producer.send("orders", b"0")).offset == 0
            world.broker.create("orders")
            assert (await producer.send("orders", b"1")).offset == 0

    run(main)
    assert numbers(world.broker.topics["orders"]) == [1]


def test_a_deleted_topic_fails_what_was_meant_for_it(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            del world.broker.topics["orders"]
            with pytest.raises(TopicNotFound, match="'orders' does not exist"):
                await producer.send("orders", b"1")

    run(main)


def test_a_slow_socket_takes_everything_in_order(run: Run, world: World) -> None:
    topic = world.broker.create("orders")
    world.net.takes = 7

    async def main() -> None:
        async with world.client() as client, client.producer(batch_bytes=500) as producer:
            await producer.send_many("orders", [b"%d" % n for n in range(500)])

    run(main)
    assert numbers(topic) == list(range(500))


def test_a_producer_that_gets_nowhere_is_stalled_and_says_why(run: Run, world: World) -> None:
    world.broker.create("orders")
    seen: list[tuple[str, object]] = []

    async def main() -> None:
        async with world.client() as client, client.producer(timeout=0.1) as producer:
            client.on("stalled", lambda event: seen.append((event.reason[:4], event.details)))
            await producer.send("orders", b"0")
            assert producer.health().healthy
            world.broker.script.extend([below_min_isr() for _ in range(1_000)])
            delivery = producer.enqueue_nowait("orders", b"1")
            await until(lambda: producer.health().state == "stalled")
            health = producer.health()
            assert not health.healthy
            assert health.reason is not None
            assert health.reason.startswith("T030")
            assert (health.buffered_records, health.buffered_bytes) == (1, 17)
            assert (health.oldest_pending_ms or 0) >= 50
            with pytest.raises(SendTimeout):
                await delivery
            world.broker.script.clear()
            await producer.send("orders", b"2")
            assert producer.health().oldest_pending_ms is None

    run(main)
    assert seen == [("T030", {"partition": "orders[0]"})]


@pytest.mark.parametrize("written", [False, True])
def test_what_waited_for_the_disk_in_vain_was_surely_not_written(
    run: Run, world: World, written: bool
) -> None:
    world.broker.create("orders")
    waited = texts.append_timeout("orders", 0, waited_s=0.1)
    if written:
        waited = texts.commit_timeout("orders", 0, offset=0, waited_s=0.1)

    async def main() -> None:
        async with world.client() as client, client.producer(timeout=0.3) as producer:
            world.broker.script.extend([waited] * 1_000)
            with pytest.raises(SendTimeout) as caught:
                await producer.send("orders", b"0")
            assert caught.value.maybe_written is written
            world.broker.script.clear()

    run(main)
