"""A consumer while leaders move and die: no gap, no repeat, no error; readers near a follower."""

from typing import Any

import anyio
import pytest

from tailrace.client.consumer import Consumer
from tailrace.protocol import texts
from tailrace.protocol.errors import OffsetOutOfRange
from tailrace.protocol.messages import MetadataRequest
from tests.client.fake_broker import Topic
from tests.client.fake_cluster import FakeCluster
from tests.client.world import Run, until


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    return FakeCluster(monkeypatch)


async def take(consumer: Consumer[Any, Any], count: int) -> list[Any]:
    records = consumer.__aiter__()
    return [(await records.__anext__()).value for _ in range(count)]


def filled(together: FakeCluster, *values: bytes) -> Topic:
    topic = together.create("orders")
    for value in values:
        together.append(topic, value)
    return topic


@pytest.mark.parametrize("later", [False, True])
def test_reading_goes_on_at_the_new_leader(run: Run, together: FakeCluster, later: bool) -> None:
    topic = filled(together, b"0", b"1")

    async def main() -> None:
        async with together.client() as client, client.consumer("orders") as consumer:
            assert await take(consumer, 2) == [b"0", b"1"]
            together.brokers["n1"].kill()
            if later:
                with anyio.move_on_after(0.1):
                    await take(consumer, 1)
            together.elect(topic, "n2")
            together.append(topic, b"2")
            together.append(topic, b"3")
            assert await take(consumer, 2) == [b"2", b"3"]
            assert consumer.health().healthy

    run(main)
    last = together.brokers["n2"].fetched[-1].partitions[0]
    assert last.leader_epoch == 2, "the epoch that the reader knows goes with every fetch"


def test_long_poll_at_the_old_leader_is_left_when_the_leader_moves(
    run: Run, together: FakeCluster
) -> None:
    """The old leader does not know yet, and would hold it for long."""
    topic = filled(together, b"0")
    n1, n2 = together.brokers["n1"], together.brokers["n2"]

    async def main() -> None:
        async with together.client(request_timeout=60.0) as client:
            async with client.consumer("orders", fetch_wait=30.0) as consumer:
                assert await take(consumer, 1) == [b"0"]
                await until(lambda: bool(n1.parked))
                question = MetadataRequest((), False)
                await client.cluster.leader_request("n2", question, timeout=60.0)  # n2 is there
                n1.stuck, n1.silent = together.view, True
                n1.parked.clear()
                together.elect(topic, "n2")
                together.append(topic, b"1")
                client.cluster.look_again("n1")
                with anyio.fail_after(2.0):
                    assert await take(consumer, 1) == [b"1"]
                assert n2.fetched

    run(main)


def test_fetch_that_a_silent_leader_owes_leads_to_the_new_one(
    run: Run, together: FakeCluster
) -> None:
    topic = filled(together, b"0")

    async def main() -> None:
        async with together.client(request_timeout=60.0) as client:
            async with client.consumer("orders", fetch_wait=0.05) as consumer:
                assert await take(consumer, 1) == [b"0"]
                together.brokers["n1"].black_hole = True
                together.leave("n1")
                together.elect(topic, "n3")
                together.append(topic, b"1")
                with anyio.fail_after(2.0):
                    assert await take(consumer, 1) == [b"1"]

    run(main)


@pytest.mark.parametrize(
    "error",
    [
        texts.not_leader("orders", 0, broker="n1"),
        texts.epoch_fenced("orders", 0, yours=1, current=2),
        texts.partition_offline("orders", 0, reason="nobody leads it"),
        texts.metadata_unavailable("etcd", "the lease is over"),
    ],
)
def test_refusal_leads_to_the_new_leader_without_a_pause(
    run: Run, together: FakeCluster, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = filled(together, b"0")

    async def main() -> None:
        async with together.client() as client, client.consumer("orders") as consumer:
            assert await take(consumer, 1) == [b"0"]
            monkeypatch.setattr("tailrace.client.retry.FIRST_MAX_S", 30.0)
            monkeypatch.setattr("tailrace.client.retry.LIMIT_S", 30.0)
            together.brokers["n1"].refuse_with.extend([error] * 100)
            together.elect(topic, "n2")
            together.append(topic, b"1")
            with anyio.fail_after(1.0):
                assert await take(consumer, 1) == [b"1"]

    run(main)


def test_watermark_that_a_new_leader_does_not_know_yet_is_waited_for(
    run: Run, together: FakeCluster
) -> None:
    topic = filled(together, b"0")

    async def main() -> None:
        async with together.client() as client, client.consumer("orders") as consumer:
            assert await take(consumer, 1) == [b"0"]
            together.brokers["n1"].kill()
            together.elect(topic, "n2")
            unknown = texts.offset_not_available("orders", 0, epoch=2)
            together.brokers["n2"].refuse_with.extend([unknown] * 3)
            together.append(topic, b"1")
            assert await take(consumer, 1) == [b"1"]

    run(main)


@pytest.mark.parametrize("policy", ["raise", "earliest", "latest"])
def test_log_that_lost_its_end_is_dealt_with_as_configured(
    run: Run, together: FakeCluster, policy: Any
) -> None:
    """After an unclean election the log may end below what was read."""
    topic = filled(together, b"0", b"1", b"2")

    async def main() -> None:
        async with together.client() as client:
            async with client.consumer("orders", on_out_of_range=policy) as consumer:
                assert await take(consumer, 3) == [b"0", b"1", b"2"]
                together.brokers["n1"].kill()
                del together.brokers["n1"].entries[topic.topic_id, 0][1:]
                together.elect(topic, "n2")
                if policy == "raise":
                    with pytest.raises(OffsetOutOfRange, match="asked for 3") as caught:
                        await take(consumer, 1)
                    assert (caught.value.requested, caught.value.end) == (3, 1)
                elif policy == "earliest":
                    assert await take(consumer, 1) == [b"0"]
                else:
                    with anyio.move_on_after(0.1):
                        await take(consumer, 1)
                    together.append(topic, b"new")
                    assert await take(consumer, 1) == [b"new"]

    run(main)


def test_partitions_of_other_leaders_are_not_held_up(run: Run, together: FakeCluster) -> None:
    topic = together.create("orders", 2)
    together.elect(topic, "n2", 1)

    async def main() -> None:
        async with together.client() as client, client.consumer("orders") as consumer:
            together.append(topic, b"a0", partition=0)
            together.append(topic, b"b0", partition=1)
            assert sorted(await take(consumer, 2)) == [b"a0", b"b0"]
            together.brokers["n2"].kill()
            for number in range(1, 5):
                together.append(topic, b"a%d" % number, partition=0)
                with anyio.fail_after(1.0):
                    assert await take(consumer, 1) == [b"a%d" % number]

    run(main)


# ── readers near a follower (KIP-392) ────────────────────────────────────────────────────────


def near(together: FakeCluster) -> None:
    """n3 is in the readers' rack, and serves them."""
    together.brokers["n1"].near = "n3"
    together.brokers["n3"].serves_readers = True


def test_reader_with_a_rack_goes_to_the_follower_that_the_leader_names(
    run: Run, together: FakeCluster
) -> None:
    topic = filled(together, b"0")
    near(together)

    async def main() -> None:
        async with together.client(rack="r3") as client:
            async with client.consumer("orders") as consumer:
                assert await take(consumer, 1) == [b"0"]
                together.append(topic, b"1")
                assert await take(consumer, 1) == [b"1"]
        assert [one.rack for one in together.brokers["n1"].fetched] == ["r3"]
        assert len(together.brokers["n3"].fetched) >= 2

    run(main)


def test_reader_without_a_rack_stays_with_the_leader(run: Run, together: FakeCluster) -> None:
    filled(together, b"0")
    near(together)

    async def main() -> None:
        async with together.client() as client, client.consumer("orders") as consumer:
            assert await take(consumer, 1) == [b"0"]
        assert not together.brokers["n3"].fetched

    run(main)


@pytest.mark.parametrize("how", ["refused", "out of range", "killed"])
def test_follower_that_fails_is_left_for_the_leader_at_once(
    run: Run, together: FakeCluster, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = filled(together, b"0")
    near(together)
    n3 = together.brokers["n3"]

    async def main() -> None:
        async with together.client(rack="r3") as client:
            async with client.consumer("orders") as consumer:
                assert await take(consumer, 1) == [b"0"]
                monkeypatch.setattr("tailrace.client.retry.FIRST_MAX_S", 30.0)
                monkeypatch.setattr("tailrace.client.retry.LIMIT_S", 30.0)
                if how == "killed":
                    n3.kill()
                elif how == "refused":
                    n3.refuse_with.append(texts.not_leader("orders", 0, broker="n3"))
                else:
                    n3.refuse_with.append(
                        texts.offset_out_of_range("orders", 0, requested=1, start=0, end=0)
                    )
                together.append(topic, b"1")
                with anyio.fail_after(1.0):
                    assert await take(consumer, 1) == [b"1"]
        assert together.brokers["n1"].fetched[-1].rack is None, "it would name n3 again"

    run(main)


def test_follower_that_nobody_lists_is_not_followed(run: Run, together: FakeCluster) -> None:
    filled(together, b"0")
    together.brokers["n1"].near = "n9"

    async def main() -> None:
        async with together.client(rack="r3") as client:
            async with client.consumer("orders") as consumer:
                with anyio.fail_after(2.0):
                    assert await take(consumer, 1) == [b"0"]

    run(main)
