"""How ``run`` ends when a handler, reading or somebody outside ends it, and what stays apart."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import tailrace
from tailrace.client.records import Record
from tailrace.protocol.errors import UsageError
from tests.client.fetch_broker import FetchWorld
from tests.client.test_group_run import Handled as Gated, run_with
from tests.client.test_holdings import ONE, ZERO, joined, two_times_ten
from tests.client.test_run import VALUES, Handled, work
from tests.client.world import Run, until

AnyRecord = Record[Any, Any]
request: ContextVar[str] = ContextVar("request", default="none")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FetchWorld:
    return FetchWorld(monkeypatch)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> FetchWorld:
    """A topic of two partitions with ten records each."""
    return two_times_ten(monkeypatch)


def on_asyncio(main: Callable[[], Awaitable[None]]) -> None:
    anyio.run(main, backend="asyncio")


def test_context_of_one_record_is_not_that_of_the_next_one(run: Run, here: FetchWorld) -> None:
    seen: list[str] = []

    async def handle(record: AnyRecord) -> None:
        seen.append(request.get())
        request.set(f"{record.offset}")
        await anyio.lowlevel.checkpoint()
        assert request.get() == f"{record.offset}"

    work(run, here, handle, VALUES)
    assert seen == ["none"] * 30


def test_context_is_kept_from_one_attempt_to_the_next(run: Run, here: FetchWorld) -> None:
    seen: list[str] = []

    async def handle(record: AnyRecord) -> None:
        seen.append(request.get())
        request.set(f"{record.offset}")
        if len(seen) == 1:
            raise ValueError("again")

    work(run, here, handle, VALUES[:2], on_error=tailrace.retry(2, backoff=0.0))
    assert seen == ["none", "0", "none"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, StopAsyncIteration, Exception])
def test_whatever_a_handler_raises_is_raised(
    run: Run, here: FetchWorld, kind: type[BaseException]
) -> None:
    async def handle(record: AnyRecord) -> None:
        await anyio.lowlevel.checkpoint()
        if record.offset == 3:
            raise kind("x")

    with pytest.raises(kind, match=r"^x$") as raised:
        work(run, here, handle, VALUES)
    assert type(raised.value) is kind


@pytest.mark.parametrize("signals", [True, False])
def test_interruption_of_reading_is_raised_as_itself(
    run: Run, here: FetchWorld, signals: bool
) -> None:
    class Interrupted:
        name = "interrupted"

        def encode(self, value: bytes) -> bytes:
            return value

        def decode(self, data: bytes) -> bytes:
            if data == b"3":
                raise KeyboardInterrupt
            return data

    topic = here.fetch.create("orders")
    for value in VALUES:
        here.fetch.append(topic, [value])

    async def main() -> None:
        async with here.client() as client:
            async with client.consumer("orders", value=Interrupted()) as consumer:
                with pytest.raises(KeyboardInterrupt):
                    await consumer.run(Handled(), signals=signals)

    run(main)


def test_cancellation_that_nobody_asked_for_does_not_look_like_the_end(here: FetchWorld) -> None:
    async def handle(record: AnyRecord) -> None:
        if record.offset == 3:
            awaited = asyncio.ensure_future(asyncio.sleep(9))
            asyncio.get_running_loop().call_soon(awaited.cancel)
            await awaited

    with pytest.raises(asyncio.CancelledError):
        work(on_asyncio, here, handle, VALUES)


def test_timeout_of_asyncio_around_run_is_one(here: FetchWorld) -> None:
    here.fetch.append(here.fetch.create("orders"), [b"a"])
    ended: list[int] = []

    async def handle(record: AnyRecord) -> None:
        try:
            await asyncio.sleep(9)
        finally:
            ended.append(record.offset)

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await consumer.run(handle)
            assert ended == [0]

    on_asyncio(main)


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False


def test_the_first_failure_is_raised_and_the_others_are_notes(run: Run, here: FetchWorld) -> None:
    async def handle(record: AnyRecord) -> None:
        if record.offset == 2:
            await anyio.sleep(0.005)
            raise Falsy("first")
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError(f"{record.offset} too")

    with pytest.raises(Falsy, match="first") as raised:
        work(run, here, handle, VALUES, order="none", in_flight=3)
    assert sorted(raised.value.__notes__) == [
        "also failed: ValueError: 0 too",
        "also failed: ValueError: 1 too",
    ]


def test_no_handler_begins_after_a_failure(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders")
    here.fetch.append(topic, [b"x"], key=b"bad")
    here.fetch.append(topic, [b"0", b"1", b"2"], key=b"good")
    begun: set[bytes | None] = set()
    failed = anyio.Event()

    async def handle(record: AnyRecord) -> None:
        begun.add(record.value)
        if record.key == b"bad":
            await until(lambda: b"0" in begun)
            failed.set()
            raise ValueError("cannot")
        with anyio.CancelScope(shield=True):  # it ends well, but later
            await failed.wait()

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            with pytest.raises(ValueError, match="cannot"):
                await consumer.run(handle)

    run(main)
    assert begun == {b"x", b"0"}


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_partition_that_goes_after_a_run_waits_for_no_handler_of_it(
    run: Run, group: FetchWorld, how: str
) -> None:
    async def main() -> None:
        async with joined(group) as own:
            await own.assign(0, 1)
            scope = anyio.CancelScope()

            async def handle(record: AnyRecord) -> None:
                if record.partition == 0 and record.offset == 2:
                    await anyio.sleep_forever()
                if record.partition == 1:
                    await until(lambda: own.committable.get(ZERO) == 2)
                    if how == "failed":
                        raise ValueError("cannot")
                    scope.cancel()

            with scope:
                with pytest.raises(ValueError, match="cannot"):
                    await own.consumer.run(handle, order="partition", signals=False)
            own.member.listener.withdrawn([ZERO])
            assert own.member.released_ones == [ZERO]
            assert own.member.stored[ZERO].offset == 2

    run(main)


def test_partition_that_is_going_when_a_run_fails_goes_at_once(run: Run, group: FetchWorld) -> None:
    async def main() -> None:
        async with joined(group) as own:
            await own.assign(0, 1)

            async def handle(record: AnyRecord) -> None:
                if record.partition == 0:
                    await anyio.sleep_forever()
                await until(lambda: own.consumer.position(ZERO) > 0)
                own.member.listener.withdrawn([ZERO])
                assert own.member.released_ones == []
                raise ValueError("cannot")

            with pytest.raises(ValueError, match="cannot"):
                await own.consumer.run(handle, order="partition", signals=False)
            assert own.member.released_ones == [ZERO]
            assert ZERO not in own.member.stored, "nothing of it is done"

    run(main)


@pytest.mark.parametrize("signals", [True, False])
def test_second_run_beside_the_first_is_refused_and_takes_nothing(
    run: Run, group: FetchWorld, signals: bool
) -> None:
    async def main() -> None:
        async with joined(group) as own:
            await own.assign(0, 1)
            handled, other = Gated(), Gated()
            handled.hold((0, 2), (1, 2))

            async def body() -> None:
                await until(lambda: len(handled.begun) == 6)
                with pytest.raises(UsageError, match="T055"):
                    await own.consumer.run(other, signals=signals)
                handled.let_go((0, 2), (1, 2))
                await until(lambda: own.committable == {ZERO: 10, ONE: 10})

            await run_with(own, handled, body, order="partition")
            assert other.begun == []
            assert len(handled.begun) == 20

    run(main)


def test_second_run_beside_the_first_is_refused_without_a_group(run: Run, here: FetchWorld) -> None:
    here.fetch.append(here.fetch.create("orders"), [b"a", b"b"])

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:

            async def again(record: AnyRecord) -> None:
                await consumer.run(again)

            with pytest.raises(UsageError, match="T055"):
                await consumer.run(again, in_flight=1)

    run(main)
