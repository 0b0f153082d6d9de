"""``run``: order, room, errors, signals, draining."""

import os
import signal
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest

import tailrace
from tailrace.client.policy import ErrorPolicy
from tailrace.client.records import Record
from tailrace.client.run import AHEAD, Lanes, Taken
from tailrace.protocol.columns import Columns
from tailrace.protocol.errors import ConfigError, TopicNotFound
from tests.client.fetch_broker import FetchWorld
from tests.client.test_records import stored
from tests.client.world import Run

Order = Literal["key", "partition", "none"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FetchWorld:
    return FetchWorld(monkeypatch)


def keyed(*keys: bytes | None) -> list[Record[bytes, bytes]]:
    values: list[bytes | None] = [b"v"] * len(keys)
    batch = stored(Columns(1_000, None, None, list(keys), values, None))
    return [Record(batch, index) for index in range(len(keys))]


def takens(*keys: bytes | None) -> list[Taken]:
    return [Taken(record, None) for record in keyed(*keys)]


def test_records_of_one_key_wait_for_each_other() -> None:
    lanes = Lanes("key")
    a1, b1, a2, none1, none2 = all_of_them = takens(b"a", b"b", b"a", None, None)
    assert [lanes.push(one) for one in all_of_them] == [True, True, False, True, True]
    assert lanes.done(a1) is a2
    assert [lanes.done(one) for one in (b1, none1, a2, none2)] == [None] * 4
    assert (lanes.taken, lanes.working) == (0, 0)
    assert lanes.push(*takens(b"a")), "the lane is free again"


@pytest.mark.parametrize(("order", "at_once"), [("partition", 1), ("none", 3), ("key", 3)])
def test_order_says_what_may_run_at_once(order: Order, at_once: int) -> None:
    lanes = Lanes(order)
    assert sum(lanes.push(one) for one in takens(b"a", b"b", None)) == at_once == lanes.working


class Handled:
    """A handler that notes what it saw, and fails where it is told to."""

    def __init__(self, fail: dict[bytes, int] | None = None, pause_s: float = 0.0) -> None:
        self.values: list[bytes] = []
        self.at_once = 0
        self.at_once_max = 0
        self.tries: dict[bytes, int] = {}
        self._fail = fail or {}
        self._pause_s = pause_s

    async def __call__(self, record: Record[bytes, bytes]) -> None:
        value = record.value or b""
        self.tries[value] = self.tries.get(value, 0) + 1
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        try:
            await anyio.sleep(self._pause_s)
            if self.tries[value] <= self._fail.get(value, 0):
                raise ValueError(f"cannot do {value.decode()}")
            self.values.append(value)
        finally:
            self.at_once -= 1


def work(
    run: Run, here: FetchWorld, handled: Any, values: list[bytes | None], **options: Any
) -> None:
    topic = here.fetch.create("orders")
    for value in values:
        here.fetch.append(topic, [value])

    async def main() -> None:
        async with here.client() as client:
            async with client.consumer("orders", stop_at_end=True) as consumer:
                await consumer.run(handled, **options)

    run(main)


VALUES: list[bytes | None] = [b"%d" % number for number in range(30)]


def test_every_record_of_a_key_is_handled_in_order(run: Run, here: FetchWorld) -> None:
    handled = Handled()
    work(run, here, handled, VALUES)
    assert handled.values == VALUES
    assert handled.at_once_max == 1, "they all have the same key"


def test_handler_that_never_waits_lets_others_run(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders")
    for key in (b"a", b"b"):
        for number in range(10):
            here.fetch.append(topic, [b"%d" % number], key=key)
    passes = 0
    seen: dict[bytes, list[int]] = {b"a": [], b"b": []}

    async def count() -> None:
        nonlocal passes
        while True:
            await anyio.lowlevel.checkpoint()
            passes += 1

    async def handle(record: Record[bytes, bytes]) -> None:
        seen[record.key or b""].append(passes)

    async def main() -> None:
        async with here.client() as client, anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            async with client.consumer("orders", stop_at_end=True) as consumer:
                await consumer.run(handle)
            tasks.cancel_scope.cancel()

    run(main)
    for of_key in seen.values():
        assert len(of_key) == 10
        assert all(later > one for one, later in zip(of_key, of_key[5:], strict=False))


def test_no_more_than_in_flight_at_once(run: Run, here: FetchWorld) -> None:
    handled = Handled(pause_s=0.001)
    work(run, here, handled, VALUES, order="none", in_flight=4)
    assert sorted(handled.values) == sorted(value or b"" for value in VALUES)
    assert handled.at_once_max == 4


def test_what_waits_for_its_key_keeps_no_other_key_from_having_work() -> None:
    lanes = Lanes("key")
    a1, *waiting, b1 = takens(b"a", b"a", b"a", b"a", b"b")
    assert lanes.push(a1)
    assert not any(lanes.push(one) for one in waiting)
    assert lanes.push(b1)
    assert (lanes.taken, lanes.working) == (5, 2)


def test_keys_that_come_in_bursts_are_handled_at_once(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders")
    for number in range(24):
        here.fetch.append(topic, [b"%d" % number], key=b"%d" % (number // 6))
    handled = Handled(pause_s=0.001)

    async def main() -> None:
        async with here.client() as client:
            async with client.consumer("orders", stop_at_end=True) as consumer:
                await consumer.run(handled, in_flight=4)

    run(main)
    assert len(handled.values) == 24
    assert handled.at_once_max == 4


def test_so_much_is_read_ahead_and_no_more(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders")
    here.fetch.append(topic, [b"v"] * (AHEAD * 3))
    positions: list[int] = []

    async def main() -> None:
        async def handle(record: Record[bytes, bytes]) -> None:
            await anyio.sleep(0.001)
            positions.append(consumer.position(tailrace.TopicPartition("orders", 0)))

        async with here.client() as client:
            async with client.consumer("orders", stop_at_end=True) as consumer:
                await consumer.run(handle, in_flight=2)

    run(main)
    assert max(after - handled for handled, after in enumerate(positions)) == AHEAD * 2


def test_first_exception_is_raised_as_it_is(run: Run, here: FetchWorld) -> None:
    handled = Handled({b"3": 99})
    with pytest.raises(ValueError, match="cannot do 3"):
        work(run, here, handled, VALUES)
    assert handled.values == [b"0", b"1", b"2"]


def test_retry_tries_again_and_goes_on(run: Run, here: FetchWorld) -> None:
    handled = Handled({b"3": 2})
    work(run, here, handled, VALUES, on_error=tailrace.retry(3, backoff=0.0001))
    assert handled.values == VALUES
    assert handled.tries[b"3"] == 3


def test_retry_raises_after_the_last_attempt(run: Run, here: FetchWorld) -> None:
    handled = Handled({b"3": 99})
    with pytest.raises(ValueError, match="cannot do 3"):
        work(run, here, handled, VALUES, on_error=tailrace.retry(2, backoff=0.0))
    assert handled.tries[b"3"] == 2


def test_other_exceptions_are_not_tried_again(run: Run, here: FetchWorld) -> None:
    handled = Handled({b"3": 1})
    with pytest.raises(ValueError, match="cannot do 3"):
        work(run, here, handled, VALUES, on_error=tailrace.retry(5, on=(KeyError, OSError)))
    assert handled.tries[b"3"] == 1


def test_record_that_keeps_failing_is_skipped_and_logged(
    run: Run, here: FetchWorld, caplog: pytest.LogCaptureFixture
) -> None:
    handled = Handled({b"3": 99})
    work(run, here, handled, VALUES, on_error=tailrace.retry(2, backoff=0.0).then_skip())
    assert b"3" not in handled.values
    assert len(handled.values) == 29
    says = "orders[0]@3 failed 2 times (ValueError: cannot do 3); skipped"
    assert says in caplog.text


def test_record_that_keeps_failing_becomes_a_dead_letter(run: Run, here: FetchWorld) -> None:
    letters = here.fetch.create("letters")
    handled = Handled({b"3": 99})
    policy = tailrace.retry(2, backoff=0.0).then_dead_letter("letters")
    work(run, here, handled, VALUES, on_error=policy)
    assert len(handled.values) == 29
    assert letters.logs == [[b"3"]]
    assert letters.keys == [[b"k"]]


def test_dead_letter_that_cannot_be_written_is_raised(run: Run, here: FetchWorld) -> None:
    policy = tailrace.retry(1).then_dead_letter("missing")
    with pytest.raises(TopicNotFound):
        work(run, here, Handled({b"3": 99}), VALUES, on_error=policy)


def test_what_reading_raises_is_raised(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders")
    here.fetch.append(topic, [b"1"])
    here.fetch.append(topic, [b"no number"])

    async def main() -> None:
        async with here.client() as client:
            async with client.consumer("orders", value="json") as consumer:
                with pytest.raises(tailrace.DecodeError, match=r"orders\[0\]@1 is not json"):
                    await consumer.run(Handled())

    run(main)


def test_signal_drains_what_is_in_flight(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders")
    for value in VALUES:
        here.fetch.append(topic, [value])
    done: list[int] = []

    async def handle(record: Record[bytes, bytes]) -> None:
        if record.offset == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        await anyio.sleep(0.01)
        done.append(record.offset)

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            await consumer.run(handle, in_flight=2)
            assert done == [0, 1, 2] or done == [0, 1, 2, 3]
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    run(main)


def test_drain_ends_after_its_timeout(
    run: Run, here: FetchWorld, caplog: pytest.LogCaptureFixture
) -> None:
    here.fetch.append(here.fetch.create("orders"), [b"a"])

    async def handle(record: Record[bytes, bytes]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await anyio.sleep_forever()

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            await consumer.run(handle, drain_timeout=0.01)

    run(main)
    assert "1 records not finished within drain_timeout" in caplog.text


def test_cancelling_run_cancels_the_handlers(run: Run, here: FetchWorld) -> None:
    here.fetch.append(here.fetch.create("orders"), [b"a"])
    ended: list[str] = []

    async def handle(record: Record[bytes, bytes]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("handler")

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            with anyio.move_on_after(0.05):
                await consumer.run(handle)
            assert ended == ["handler"]

    run(main)


@pytest.mark.parametrize("arguments", [{"in_flight": 0}, {"order": "random"}])
def test_arguments_that_cannot_be(run: Run, here: FetchWorld, arguments: Any) -> None:
    with pytest.raises(ConfigError, match=r"T082: consumer.run\(\)"):
        work(run, here, Handled(), [], **arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"attempts": 0}, {"backoff": -1.0}, {"factor": 0.5}, {"max_backoff": -1.0}],
)
def test_retry_that_cannot_be(arguments: Any) -> None:
    with pytest.raises(ConfigError, match=r"T082: retry\(\)"):
        tailrace.retry(**{"attempts": 1} | arguments)


def test_delays_grow_up_to_a_limit() -> None:
    policy = tailrace.retry(9, backoff=0.2, factor=2.0, max_backoff=1.0)
    assert [policy.delay(attempt) for attempt in range(1, 6)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    for_ever = tailrace.retry(10**9, backoff=0.2, factor=10, max_backoff=1.0)
    assert for_ever.delay(10**8) == 1.0, "no error of arithmetic ends it"
    assert tailrace.retry(10**9, backoff=0.0).delay(10**8) == 0.0


def test_policies_are_values() -> None:
    policy = tailrace.retry(3)
    assert isinstance(policy, ErrorPolicy)
    assert (policy.then, policy.then_skip().then) == ("raise", "skip")
    assert policy.then_dead_letter("x").topic == "x"
    assert policy.then_dead_letter("x").then_raise() == policy
