"""A producer while leaders move and die: nothing lost, doubled or out of order, nothing raised."""

import ssl

import anyio
import pytest

from tailrace.protocol import texts
from tests.client.fake_broker import Do, FakeTransport, Topic
from tests.client.fake_cluster import FakeCluster, View
from tests.client.world import Run, until


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    return FakeCluster(monkeypatch)


def numbers(topic: Topic, partition: int = 0) -> list[int]:
    return [int(value) for value in topic.logs[partition]]


@pytest.mark.parametrize("fault", [Do.LOSE_ANSWER, Do.LOSE_REQUEST])
def test_leader_killed_with_batches_in_flight_costs_no_record(
    run: Run, together: FakeCluster, fault: Do
) -> None:
    topic = together.create("orders")
    n1 = together.brokers["n1"]

    async def main() -> None:
        async with together.client() as client, client.producer(batch_bytes=200) as producer:
            await producer.send("orders", b"0")
            n1.script.extend([Do.SERVE, fault])
            deliveries = [producer.enqueue_nowait("orders", b"%d" % n) for n in range(1, 100)]
            n1.kill()
            with anyio.move_on_after(0.03):
                await deliveries[-1]
            together.elect(topic, "n2")
            assert [(await d).offset for d in deliveries] == list(range(1, 100))
            assert n1.producer_ids + together.brokers["n2"].producer_ids == 1

    run(main)
    assert numbers(topic) == list(range(100))


def test_records_wait_while_nobody_leads_and_go_as_soon_as_somebody_does(
    run: Run, together: FakeCluster
) -> None:
    topic = together.create("orders")

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            together.elect(topic, None)
            together.brokers["n1"].kill()
            delivery = producer.enqueue_nowait("orders", b"1")
            with anyio.move_on_after(0.1):
                await delivery
            assert not delivery.done()
            together.elect(topic, "n3")
            assert (await delivery).offset == 1

    run(main)


def test_refusal_of_the_old_leader_is_no_pause_at_the_new_one(
    run: Run, together: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = together.create("orders")

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            monkeypatch.setattr("tailrace.client.retry.FIRST_MAX_S", 30.0)
            monkeypatch.setattr("tailrace.client.retry.LIMIT_S", 30.0)
            together.elect(topic, "n2")
            with anyio.fail_after(1.0):
                assert (await producer.send("orders", b"1")).offset == 1

    run(main)
    assert numbers(topic) == [0, 1]


def test_broker_that_leads_again_is_dialled_soon(
    run: Run, together: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = together.create("orders")
    n1 = together.brokers["n1"]

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            monkeypatch.setattr("tailrace.client.retry.FIRST_MAX_S", 30.0)
            monkeypatch.setattr("tailrace.client.retry.LIMIT_S", 30.0)
            n1.kill()
            await until(lambda: not client.cluster.reachable("n1"))
            n1.start()
            monkeypatch.setattr("tailrace.client.retry.FIRST_MAX_S", 0.002)
            together.elect(topic, "n1")
            with anyio.fail_after(1.0):
                assert (await producer.send("orders", b"1")).offset == 1

    run(main)


def test_news_of_a_leader_that_come_while_it_is_dialled_are_not_lost(
    run: Run, together: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = together.create("orders")
    n1 = together.brokers["n1"]

    async def main() -> None:
        async with (
            together.client(connect_timeout=0.3) as client,
            client.producer() as producer,
        ):
            await producer.send("orders", b"0")
            n1.black_hole = True
            n1.disconnect(ConnectionResetError(104, "reset"))
            await until(lambda: bool(n1.connections))  # dialled, and without an answer
            monkeypatch.setattr("tailrace.client.retry.FIRST_MAX_S", 0.02)
            monkeypatch.setattr("tailrace.client.retry.LIMIT_S", 30.0)
            for link in client.cluster.brokers["n1"].links:
                link._backoff.attempts = 20
            together.elect(topic, "n1")
            with anyio.fail_after(2.0):
                sent = producer.enqueue_nowait("orders", b"1")
                await anyio.sleep(0.1)  # the others have told of it
                n1.black_hole = False
                assert (await sent).offset == 1

    run(main)


@pytest.mark.parametrize("control_first", [True, False])
def test_delays_begin_anew_with_a_broker_that_took_records(
    run: Run, together: FakeCluster, caplog: pytest.LogCaptureFixture, control_first: bool
) -> None:
    """Also where its control link had nothing to carry meanwhile."""
    together.create("orders")
    n1 = together.brokers["n1"]

    async def kill() -> None:
        n1.refusing = ConnectionRefusedError(111, "refused")
        first, *others = n1.connections if control_first else n1.connections[::-1]
        first.break_off(ConnectionResetError(104, "reset"))
        await anyio.sleep(0.01)
        for connection in others:
            connection.break_off(ConnectionResetError(104, "reset"))

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            for number in range(3):
                await producer.send("orders", b"%d" % number)
                await kill()
                await until(lambda: not client.cluster.reachable("n1"))
                await anyio.sleep(0.05)
                n1.start()
            await producer.send("orders", b"3")

    run(main)
    told = [r.getMessage() for r in caplog.records if "reconnecting n1" in r.getMessage()]
    first = [text for text in told if ", attempt 1," in text]
    assert len(first) == 3
    assert first == [text for text in told if "reset" in text]


def test_delays_go_on_where_the_broker_only_takes_connections(
    run: Run, together: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    together.create("orders")
    n1 = together.brokers["n1"]

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            for _ in range(3):
                n1.disconnect(ConnectionResetError(104, "reset"))
                await until(lambda: not client.cluster.reachable("n1"))
                await until(lambda: client.cluster.reachable("n1"))

    run(main)
    told = [r.getMessage() for r in caplog.records if "reconnecting n1" in r.getMessage()]
    assert [text.split("attempt ")[1][0] for text in told] == ["1", "2", "3"]


def test_broker_that_has_left_is_not_dialled_once_more(
    run: Run,
    together: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic = together.create("orders")
    n1 = together.brokers["n1"]

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            monkeypatch.setattr("tailrace.client.retry.FIRST_MAX_S", 0.2)
            n1.kill()
            await until(lambda: not client.cluster.reachable("n1"))
            together.leave("n1")
            together.elect(topic, "n2")
            await producer.send("orders", b"1")
            assert "n1" not in client.cluster.brokers
            before = caplog.text.count("reconnecting n1")
            await anyio.sleep(0.3)
            assert caplog.text.count("reconnecting n1") == before

    run(main)


def test_later_batch_that_is_first_at_the_new_leader_waits_for_its_turn(
    run: Run, together: FakeCluster
) -> None:
    """The new leader says T038 to it; the one before is still in flight at the old leader."""
    topic = together.create("orders")
    n1, n2 = together.brokers["n1"], together.brokers["n2"]

    async def main() -> None:
        async with together.client() as client, client.producer(linger=0.0) as producer:
            await producer.send("orders", b"0")
            n1.script.append(Do.SWALLOW)
            first = producer.enqueue_nowait("orders", b"1")
            await until(lambda: not n1.script)
            together.elect(topic, "n2")
            client.cluster.look_again("n1")
            await until(lambda: n2.metadata_asked > 0)
            second = producer.enqueue_nowait("orders", b"2")
            await until(lambda: bool(n2.produced))
            n1.kill()
            assert [(await one).offset for one in (first, second)] == [1, 2]
            assert n1.producer_ids + n2.producer_ids == 1

    run(main)
    assert numbers(topic) == [0, 1, 2]


def test_producer_the_new_leader_does_not_know_gets_a_new_id(
    run: Run, together: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """After an unclean election, say: T039 for the first of what is left."""
    topic = together.create("orders")

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            together.brokers["n1"].kill()
            together.brokers["n2"].forget_producers()
            together.elect(topic, "n2")
            assert (await producer.send("orders", b"1")).offset == 1

    run(main)
    assert "producer id 1 lost its place in orders[0]" in caplog.text


def test_broker_that_knows_less_does_not_lead_back(run: Run, together: FakeCluster) -> None:
    topic = together.create("orders")
    old = View(together.view.brokers, dict(together.view.leaders))

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            together.elect(topic, "n2")
            await producer.send("orders", b"1")
            asked = len(together.brokers["n1"].produced)
            for name in ("n1", "n3"):
                together.brokers[name].stuck = old
            client.cluster.invalidate("orders")
            assert (await client.cluster.topic("orders")).partitions[0].leader == "n2"
            assert (await producer.send("orders", b"2")).offset == 2
            assert len(together.brokers["n1"].produced) == asked

    run(main)


def test_silent_leader_is_left_when_it_has_left_the_cluster(
    run: Run, together: FakeCluster
) -> None:
    """It is cut off: nothing breaks, nothing answers, and its lease ends."""
    topic = together.create("orders")

    async def main() -> None:
        async with (
            together.client(request_timeout=60.0) as client,
            client.producer() as producer,
        ):
            await producer.send("orders", b"0")
            together.brokers["n1"].black_hole = True
            delivery = producer.enqueue_nowait("orders", b"1")
            with anyio.move_on_after(0.05):
                await delivery
            together.elect(topic, "n2")
            together.leave("n1")
            with anyio.fail_after(2.0):
                assert (await delivery).offset == 1

    run(main)


def test_leader_that_is_cut_off_from_the_store_is_looked_up_elsewhere(
    run: Run, together: FakeCluster
) -> None:
    """It refuses with T100, and tells whoever asks that it leads."""
    topic = together.create("orders")
    n1 = together.brokers["n1"]

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            n1.stuck = together.view
            n1.script.extend([texts.metadata_unavailable("etcd", "the lease is over")] * 1_000)
            together.elect(topic, "n2")
            with anyio.fail_after(2.0):
                assert (await producer.send("orders", b"1")).offset == 1

    run(main)
    assert numbers(topic) == [0, 1]


@pytest.mark.parametrize("broken", ["never opened", "lost"])
def test_records_go_when_the_connection_for_them_comes_back(
    run: Run, together: FakeCluster, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The leader is there all the time, and takes no further connection for a while."""
    topic = together.create("orders", leader="n2")
    n2, connect = together.brokers["n2"], together.net.connect
    refused, refusing = 0, broken == "never opened"

    async def dial(host: str, port: int, tls: ssl.SSLContext | None) -> FakeTransport:
        nonlocal refused
        if host == "n2" and refusing and n2.connections:  # the first is for control
            refused += 1
            raise ConnectionRefusedError(111, "refused")
        return await connect(host, port, tls)

    monkeypatch.setattr(together.net, "connect", dial)
    monkeypatch.setattr("tailrace.client.retry.LIMIT_S", 0.002)
    monkeypatch.setattr("tailrace.client.retry.LEADER_LIMIT_S", 0.01)
    monkeypatch.setattr("tailrace.client.sender.AGE_MAX_S", 0.0)  # no other occasion to look

    async def main() -> None:
        nonlocal refusing
        async with together.client() as client, client.producer(linger=0.0) as producer:
            if broken == "lost":
                await producer.send("orders", b"0")
                refusing = True
                link = client.cluster.link("n2", "produce")
                assert link is not None
                assert link.channel is not None
                link.channel.close("cut")
            delivery = producer.enqueue_nowait("orders", b"1")
            await until(lambda: refused > 20)  # whoever asks once or twice has given up by then
            refusing = False
            with anyio.fail_after(2.0):
                await delivery

    run(main)
    assert numbers(topic)[-1] == 1


def test_metadata_are_not_asked_for_without_a_pause(run: Run, together: FakeCluster) -> None:
    topic = together.create("orders")

    async def main() -> None:
        async with together.client() as client, client.producer(timeout=0.3) as producer:
            await producer.send("orders", b"0")
            before = sum(broker.metadata_asked for broker in together.brokers.values())
            together.elect(topic, None)
            together.brokers["n1"].kill()
            delivery = producer.enqueue_nowait("orders", b"1")
            with pytest.raises(TimeoutError, match="T020"):
                await delivery
            asked = sum(broker.metadata_asked for broker in together.brokers.values()) - before
            assert 3 < asked < 300

    run(main)


def test_other_partitions_are_not_held_up(run: Run, together: FakeCluster) -> None:
    topic = together.create("orders", 3)
    for number, leader in enumerate(together.brokers):
        together.elect(topic, leader, number)

    async def main() -> None:
        async with together.client() as client, client.producer() as producer:
            for number in range(3):
                await producer.send("orders", b"0", partition=number)
            together.brokers["n2"].kill()
            stuck = producer.enqueue_nowait("orders", b"1", partition=1)
            for number in (0, 2):
                with anyio.fail_after(1.0):
                    await producer.send("orders", b"1", partition=number)
            assert not stuck.done()
            together.elect(topic, "n3", 1)
            await stuck

    run(main)
    assert all(numbers(topic, number) == [0, 1] for number in range(3))


def test_batches_are_in_order_over_many_moves(run: Run, together: FakeCluster) -> None:
    topic = together.create("orders")

    async def main() -> None:
        async with together.client() as client, client.producer(batch_bytes=100) as producer:
            deliveries = []
            for number in range(300):
                deliveries.append(await producer.enqueue("orders", b"%d" % number))
                if number % 30 == 29:
                    leader = together.view.leaders[topic.topic_id, 0][0] or "n1"
                    together.brokers[leader].kill()
                    together.elect(topic, {"n1": "n2", "n2": "n3", "n3": "n1"}[leader])
                    together.brokers[leader].start()
                    await anyio.sleep(0.002)
            assert [(await one).offset for one in deliveries] == list(range(300))

    run(main)
    assert numbers(topic) == list(range(300))
