"""Partitions that ``run`` makes wait, and that the user pauses: each takes back only its own."""

import anyio
import pytest

from tests.client.fetch_broker import FetchWorld
from tests.client.test_group_run import Handled, run_with
from tests.client.test_holdings import ZERO, joined, two_times_ten
from tests.client.world import Run, until


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FetchWorld:
    """A topic of two partitions with ten records each."""
    return two_times_ten(monkeypatch)


def test_partition_that_the_user_paused_meanwhile_stays_paused(
    run: Run, here: FetchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.client.run.SPAN_MAX", 4)

    async def main() -> None:
        handled = Handled()
        handled.hold((0, 1))
        async with joined(here) as own:
            await own.assign(0)

            async def body() -> None:
                buffer = own.consumer.feed.buffers[ZERO]
                await until(lambda: buffer.paused)
                own.consumer.pause(ZERO)
                taken = own.consumer.position(ZERO)
                handled.let_go((0, 1))
                await until(lambda: own.committable == {ZERO: taken})
                await anyio.wait_all_tasks_blocked()
                assert buffer.paused
                assert sorted(handled.begun) == [(0, offset) for offset in range(taken)]
                own.consumer.resume(ZERO)
                await until(lambda: own.committable == {ZERO: 10})

            await run_with(own, handled, body, order="none")

    run(main)


def test_partition_that_waits_for_a_record_is_not_resumed_by_the_user(
    run: Run, here: FetchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.client.run.SPAN_MAX", 4)

    async def main() -> None:
        handled = Handled()
        handled.hold((0, 1))
        async with joined(here) as own:
            await own.assign(0)

            async def body() -> None:
                buffer = own.consumer.feed.buffers[ZERO]
                await until(lambda: buffer.paused)
                own.consumer.pause(ZERO)
                own.consumer.resume(ZERO)
                assert buffer.paused
                await anyio.wait_all_tasks_blocked()
                assert (0, 6) not in handled.begun
                handled.let_go((0, 1))
                await until(lambda: own.committable == {ZERO: 10})

            await run_with(own, handled, body, order="none")

    run(main)
