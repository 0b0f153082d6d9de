"""A context of its own for what is awaited: exceptions and cancellation pass as they are."""

import asyncio
from collections.abc import Generator
from contextvars import ContextVar, copy_context
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tailrace.client.apart import Apart
from tests.client.world import Run

name: ContextVar[str] = ContextVar("name", default="nobody")


def test_what_is_set_within_stays_there_and_is_there_again(run: Run) -> None:
    seen: list[str] = []

    async def enter(guest: str) -> None:
        seen.append(name.get())
        name.set(guest)
        await anyio.lowlevel.checkpoint()
        seen.append(name.get())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)

    async def look() -> None:
        seen.append(name.get())

    async def main() -> None:
        name.set("host")
        context = copy_context()
        await Apart(context, enter, "a")
        assert name.get() == "host"
        await Apart(context, enter, "b")
        await Apart(copy_context(), enter, "c")

    run(main)
    assert seen == ["host", "a", "a", "a", "b", "b", "host", "c", "c"]


def test_exceptions_leave_as_they_are(run: Run) -> None:
    async def at_once(error: BaseException) -> None:
        raise error

    async def later(error: BaseException) -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    async def main() -> None:
        for fail in (at_once, later):
            for error in (ValueError("x"), KeyboardInterrupt(), StopAsyncIteration()):
                with pytest.raises(type(error)) as raised:
                    await Apart(copy_context(), fail, error)
                assert raised.value is error
            with pytest.raises(RuntimeError, match="raised StopIteration"):
                await Apart(copy_context(), fail, StopIteration())

    run(main)


def test_cancellation_comes_in_within_the_context(run: Run) -> None:
    seen: list[str] = []

    async def wait(guest: str) -> None:
        name.set(guest)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            seen.append(name.get())
            raise

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep, 0.001)
                tasks.start_soon(cancel_soon, scope)
                await Apart(copy_context(), wait, "a")
        assert scope.cancelled_caught

    async def cancel_soon(scope: anyio.CancelScope) -> None:
        await anyio.lowlevel.checkpoint()
        scope.cancel()

    run(main)
    assert seen == ["a"]


def test_a_cancellation_that_is_swallowed_does_not_end_it(run: Run) -> None:
    async def stay(guest: str) -> None:
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
        done.append(guest)

    done: list[str] = []

    async def main() -> None:
        await Apart(copy_context(), stay, "a")

    run(main)
    assert done == ["a"]


class Plain:
    """Awaitable by an iterator that is no generator."""

    def __init__(self, steps: list[Any]) -> None:
        self._steps = steps

    def __await__(self) -> Any:
        return iter(self._steps)


def test_whatever_is_awaitable_may_be_awaited() -> None:
    async def main() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, None)
        await Apart(copy_context(), lambda _: future, None)
        await Apart(copy_context(), lambda _: asyncio.create_task(asyncio.sleep(0)), None)
        await Apart(copy_context(), Plain, [None, None])
        task = asyncio.ensure_future(Apart(copy_context(), Plain, [None] * 9))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_what_is_not_awaited_to_its_end_is_closed() -> None:
    ended: list[str] = []

    class Waits:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def wait(guest: str) -> None:
        name.set(guest)
        try:
            await Waits()
        finally:
            ended.append(name.get())

    steps = Apart(copy_context(), wait, "a").__await__()
    next(steps)
    steps.close()
    assert ended == ["a"]
