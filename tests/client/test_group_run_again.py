"""A second ``run`` of one consumer, where the first one failed: nothing is passed over."""

from typing import Any

import pytest

from tailrace.client.records import Record
from tests.client.fetch_broker import FetchWorld
from tests.client.test_group_run import Handled, run_with
from tests.client.test_holdings import ZERO, joined, two_times_ten
from tests.client.world import Run, until

AnyRecord = Record[Any, Any]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FetchWorld:
    """A topic of two partitions with ten records each."""
    return two_times_ten(monkeypatch)


def test_second_run_goes_on_with_a_partition_that_the_first_made_wait(
    run: Run, here: FetchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.client.run.SPAN_MAX", 4)

    async def main() -> None:
        async with joined(here) as own:
            await own.assign(0)

            async def fail(record: AnyRecord) -> None:
                if record.offset == 1:
                    await until(lambda: own.consumer.feed.buffers[ZERO].paused)
                    raise ValueError("cannot")

            with pytest.raises(ValueError, match="cannot"):
                await own.consumer.run(fail, order="none", signals=False)
            handled = Handled()

            async def body() -> None:
                await until(lambda: own.committable == {ZERO: 10})

            await run_with(own, handled, body, order="none")
            assert sorted(handled.begun) == [(0, offset) for offset in range(1, 10)]

    run(main)


def test_second_run_does_not_commit_what_the_first_left_of_a_partition_that_goes(
    run: Run, here: FetchWorld
) -> None:
    async def main() -> None:
        async with joined(here) as own:
            await own.assign(0)

            async def fail(record: AnyRecord) -> None:
                if record.offset == 1:
                    own.member.listener.withdrawn([ZERO])
                    raise ValueError("cannot")

            with pytest.raises(ValueError, match="cannot"):
                await own.consumer.run(fail, order="partition", signals=False)
            handled = Handled()

            async def body() -> None:
                await own.assign(1)
                await until(lambda: (1, 9) in handled.begun)
                assert own.member.released_ones == [ZERO]
                assert own.member.stored[ZERO].offset == 1

            await run_with(own, handled, body)

    run(main)
