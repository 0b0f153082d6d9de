"""Connecting, outages, closing, misuse: what every client does whatever it is used for."""

import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable

import anyio
import pytest

from tailrace.client.client import Client
from tailrace.client.options import resolve
from tailrace.client.producer import Producer
from tailrace.client.shapes import Event
from tailrace.protocol.errors import (
    ConfigError,
    ConnectError,
    ForkedClientError,
    MetadataUnavailable,
    RequestTimeout,
    SendTimeout,
    TailraceError,
    UsageError,
)
from tests.client.fake_broker import Do, FakeBroker
from tests.client.world import Run, World, until


async def fails(make: Callable[[], Client]) -> ConnectError:
    """The error that opening the client ends with."""
    with pytest.raises(ConnectError) as caught:
        await make().__aenter__()
    return caught.value


# ── connecting ───────────────────────────────────────────────────────────────────────────────


def test_nobody_there_is_t001_with_every_address(run: Run, world: World) -> None:
    async def main() -> None:
        error = await fails(lambda: world.client("tailrace://a:1,b:2"))
        assert error.code == "T001"
        assert error.attempts == [("a:1", "connection refused"), ("b:2", "connection refused")]
        assert error.message.endswith(" s: a:1 (connection refused), b:2 (connection refused)")
        assert error.hint == "Nothing listens there. Start one: tailrace dev"

    run(main)


def test_the_next_address_is_tried(run: Run, world: World) -> None:
    async def main() -> None:
        async with world.client("tailrace://a:1,broker:7400") as client:
            assert client.cluster_id == "cluster"
            assert client.health().healthy

    run(main)


def test_a_name_that_does_not_resolve_is_t002(run: Run, world: World) -> None:
    world.broker.refusing = socket.gaierror(socket.EAI_NONAME, "unknown")
    world.net.brokers["locahost", 7400] = world.broker

    async def main() -> None:
        error = await fails(lambda: world.client("tailrace://locahost"))
        assert error.code == "T002"
        assert error.message.endswith(" s: locahost does not resolve")
        assert error.hint == "Did you mean localhost?"

    run(main)


def test_an_advertised_address_that_does_not_work_is_t003(run: Run, world: World) -> None:
    world.broker.advertised = ("inside", 7400)

    async def main() -> None:
        error = await fails(world.client)
        assert str(error) == (
            "T003: bootstrap broker:7400 works, but broker n1 advertises inside:7400, which "
            "refuses connections from here. Set listeners.client.advertise on n1, or connect "
            "from inside its network."
        )

    run(main)


def test_the_advertised_address_is_used_from_then_on(run: Run, world: World) -> None:
    world.broker.advertised = ("inside", 7400)
    world.net.brokers["inside", 7400] = world.broker
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            await producer.send("orders", b"x")
            assert client.health().address == "inside:7400"
            assert world.broker.dialled == 3

    run(main)


@pytest.mark.parametrize(
    ("says", "found", "hint"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "HTTP", "That is the HTTP port; clients use 7400."),
        (b"\x15\x03\x01\x00\x02\x02\x46", "TLS", "Use tailraces://."),
        (b"SSH-2.0-OpenSSH_9\r\n", "SSH", "This listener speaks tailrace/1."),
    ],
)
def test_somebody_else_at_the_address_is_t004(
    run: Run, world: World, says: bytes, found: str, hint: str
) -> None:
    world.broker.foreign = says

    async def main() -> None:
        error = await fails(world.client)
        assert error.message == f"broker:7400 speaks {found}, not tailrace/1"
        assert error.hint == hint

    run(main)


def test_a_black_hole_is_given_up_within_connect_timeout(run: Run, world: World) -> None:
    world.broker.black_hole = True

    async def main() -> None:
        error = await fails(lambda: world.client(connect_timeout=0.02))
        assert (error.code, error.attempts) == ("T001", [("broker:7400", "timed out")])

    run(main)


def test_nothing_is_dialled_before_the_client_is_entered(run: Run, world: World) -> None:
    async def main() -> None:
        client = world.client()
        assert client.health().state == "connecting"
        with pytest.raises(UsageError, match="T055: Client is not open yet"):
            client.producer()
        assert world.broker.dialled == 0

    run(main)


# ── outages ──────────────────────────────────────────────────────────────────────────────────


def test_an_outage_is_logged_shown_and_ridden_out(
    run: Run, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    topic = world.broker.create("orders")
    seen: list[str] = []
    hooked: list[str] = []

    async def hook(event: Event) -> None:
        await anyio.lowlevel.checkpoint()
        hooked.append(event.name)

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            client.on("reconnecting", lambda event: seen.append(event.reason))
            client.on("connected", hook)
            await producer.send("orders", b"0")
            world.broker.refusing = ConnectionRefusedError(111, "refused")
            world.broker.disconnect()
            await anyio.wait_all_tasks_blocked()
            assert client.health().state == "reconnecting"
            assert not client.health().healthy
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(producer.send, "orders", b"1")
                await until(lambda: len(seen) >= 4)
                assert producer.health().state == "reconnecting"
                world.broker.refusing = None
            assert client.health().state == "ok"
            await anyio.wait_all_tasks_blocked()

    with caplog.at_level(logging.WARNING):
        run(main)
    assert topic.logs == [[b"0", b"1"]]
    assert seen[:2] == ["closed by the broker", "connection refused"]
    assert hooked == ["connected"]
    assert "reconnecting broker:7400 (connection refused), attempt 2, next in 0.0 s" in caplog.text


def test_max_outage_ends_every_pending_and_later_call_with_t005(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        errors: list[TailraceError] = []

        async def pending(producer: Producer[bytes, bytes]) -> None:
            for call in (producer.send("orders", b"1"), producer.send_many("orders", [b"1"])):
                try:
                    await call
                except TailraceError as error:
                    errors.append(error)

        async with world.client(max_outage=0.03) as client, client.producer() as producer:
            await producer.send("orders", b"0")
            delivery = producer.enqueue_nowait("orders", b"x")
            world.broker.refusing = ConnectionRefusedError(111, "refused")
            world.broker.disconnect()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pending, producer)
                with pytest.raises(ConnectError, match="T005"):
                    await delivery
            with pytest.raises(ConnectError, match="T005: no broker reachable for"):
                await producer.send("orders", b"2")
            with pytest.raises(ConnectError, match="T005"):
                producer.enqueue_nowait("orders", b"2")
            with pytest.raises(ConnectError, match="T005"):
                await client.cluster.topic("other")
        assert [error.code for error in errors] == ["T005", "T005"]

    run(main)


def test_an_outage_that_ends_in_time_does_not_count(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client(max_outage=0.05) as client, client.producer() as producer:
            for n in range(4):
                await producer.send("orders", b"%d" % n)
                world.broker.disconnect(ConnectionResetError(104, "reset"))
                await anyio.sleep(0.02)
            await producer.send("orders", b"x")

    run(main)


def test_a_connection_that_breaks_on_every_request_is_not_hammered(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer(timeout=0.1) as producer:
            await producer.send("orders", b"0")
            dialled = world.broker.dialled
            world.broker.script.extend([Do.LOSE_REQUEST] * 10_000)
            with pytest.raises(SendTimeout, match="after"):
                await producer.send("orders", b"1")
            assert 3 < world.broker.dialled - dialled < 60

    run(main)


def test_a_request_without_an_answer_ends_its_connection(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client(request_timeout=0.03) as client:
            await client.cluster.topic("orders")
            world.broker.black_hole = True
            client.cluster.invalidate("orders")
            with pytest.raises(RequestTimeout, match="metadata got no answer from broker:7400"):
                await client.cluster.topic("orders")
            world.broker.black_hole = False
            assert (await client.cluster.topic("orders")).name == "orders"

    run(main)


def test_metadata_is_asked_for_again_while_the_store_is_away(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client:
            away = MetadataUnavailable("T100", "metadata store unreachable")
            world.broker.metadata_script.extend([away, away])
            assert (await client.cluster.topic("orders")).name == "orders"

    run(main)


def test_a_second_broker_takes_over(run: Run, world: World) -> None:
    other = FakeBroker(broker_id="n2", host="other")
    world.net.brokers["other", 7400] = other

    async def main() -> None:
        async with world.client("tailrace://other,broker") as client:
            assert client.health().address == "other:7400"

    run(main)


# ── one exception, and the end ───────────────────────────────────────────────────────────────


def test_the_body_s_exception_leaves_unchanged(run: Run, world: World) -> None:
    mine = KeyError("mine")

    async def body() -> None:
        async with world.client():
            raise mine

    async def main() -> None:
        with pytest.raises(KeyError) as caught:
            await body()
        assert caught.value is mine

    run(main)


def test_a_background_failure_is_raised_as_itself(run: Run, world: World) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("bug")

    async def body() -> None:
        async with world.client() as client:
            client.runtime.start_soon(broken)
            client.runtime.start_soon(broken)
            await anyio.sleep_forever()

    async def main() -> None:
        with pytest.raises(ZeroDivisionError, match="bug"):
            await body()

    run(main)


def test_cancellation_from_outside_goes_through(run: Run, world: World) -> None:
    async def main() -> None:
        after = False
        with anyio.move_on_after(0.02) as scope:
            async with world.client():
                await anyio.sleep_forever()
            after = True
        assert scope.cancelled_caught
        assert not after

    run(main)


def test_closing_is_idempotent_and_ends_the_client(run: Run, world: World) -> None:
    async def main() -> None:
        client = world.client()
        async with client:
            await client.aclose()
            await client.aclose()
            assert client.health().state == "closed"
            with pytest.raises(UsageError, match="T055: Client is closed"):
                client.producer()
        assert world.broker.connections == []

    run(main)


def test_a_failing_hook_is_logged_and_hurts_nobody(
    run: Run, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def bad(event: Event) -> None:
        raise ValueError("hook")

    def worse(event: Event) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        async with world.client() as client:
            client.on("reconnecting", worse)
            client.on("reconnecting", bad)
            world.broker.disconnect()
            await until(lambda: caplog.text.count("a hook on 'reconnecting' failed") == 2)
            await until(lambda: client.health().healthy)

    run(main)


# ── misuse ───────────────────────────────────────────────────────────────────────────────────


def test_another_thread_is_refused(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            errors: list[UsageError] = []

            def other() -> None:
                for call in (
                    lambda: producer.enqueue_nowait("orders", b"x"),
                    lambda: client.producer(),
                ):
                    try:
                        call()
                    except UsageError as error:
                        errors.append(error)

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            assert [str(error)[:4] for error in errors] == ["T054", "T054"]
            assert "Producer was created in another thread" in str(errors[0])

    run(main)


def in_a_child(call: Callable[[], object]) -> str:
    """The code of the error that ``call`` raises in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        told = b""
        try:
            call()
        except ForkedClientError as error:
            told = error.code.encode() if error.created_pid == os.getppid() else b"?"
        finally:
            os.write(writing, told)
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    try:
        return os.read(reading, 100).decode()
    finally:
        os.close(reading)


def test_a_forked_child_is_refused_at_once(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            assert in_a_child(lambda: producer.enqueue_nowait("orders", b"x")) == "T053"
            assert in_a_child(lambda: client.producer()) == "T053"
            assert (await producer.send("orders", b"1")).offset == 1

    run(main)


@pytest.mark.parametrize(
    "options",
    [
        {"acks": 1},
        {"acks": "some"},
        {"max_in_flight": 6},
        {"linger": -1},
        {"timeout": 0},
        {"batch_bytes": 0},
        {"compression": "gzip"},
        {"key": "yaml"},
    ],
)
def test_producer_arguments_that_cannot_be_are_t082(
    run: Run, world: World, options: dict[str, object]
) -> None:
    async def main() -> None:
        async with world.client() as client:
            with pytest.raises(ConfigError, match=r"T082: client.producer\(\): "):
                client.producer(**options)  # type: ignore[call-overload]

    run(main)


def test_a_tls_client_hands_its_context_down(run: Run, world: World) -> None:
    context = ssl.create_default_context()

    async def main() -> None:
        async with world.client("tailraces://broker:7400", tls=context):
            assert world.broker.tls == [context]

    run(main)


def test_the_default_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_URL", "tailrace://elsewhere:7000")
    options = resolve(
        None,
        client_id=None,
        tls=None,
        connect_timeout=5.0,
        request_timeout=10.0,
        max_outage=None,
        close_timeout=10.0,
    )
    assert list(map(str, options.addresses)) == ["elsewhere:7000"]
    assert options.client_id.endswith(f"-{os.getpid()}")
