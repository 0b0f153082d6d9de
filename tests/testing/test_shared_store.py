"""The store of a test cluster keeps the contract, and wakes watchers in other threads."""

import threading
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from tailrace.broker.metadata import MetadataStore
from tailrace.protocol.errors import MetadataUnavailable
from tailrace.simulation.life import Life
from tailrace.testing.shared_store import SharedKeep, SharedStore
from tests.broker.metadata_contract import MetadataContract


class TestSharedStore(MetadataContract):
    lease_s = 0.5

    def open(self) -> AbstractAsyncContextManager[MetadataStore]:
        return opened()

    async def pass_seconds(self, seconds: float) -> None:
        await trio.sleep(seconds)


@asynccontextmanager
async def opened() -> AsyncIterator[MetadataStore]:
    store = SharedStore(SharedKeep(), Life("n1"), lambda: False)
    yield store
    await store.aclose()


def test_change_in_one_thread_wakes_a_watch_in_another() -> None:
    keep = SharedKeep()
    seen: list[int] = []
    watching = threading.Event()

    async def watch() -> None:
        one = SharedStore(keep, Life("n1"), lambda: False).watch("a/")
        watching.set()
        with trio.fail_after(5):
            await one.wait()
        seen.append(keep.revision)

    thread = threading.Thread(target=trio.run, args=(watch,))
    thread.start()
    assert watching.wait(5)
    keep.transact([], {"a/1": b"x"}, [], None)
    thread.join(5)
    assert seen == [1]


def test_watch_wakes_when_a_lease_ends_that_nobody_asks_about() -> None:
    keep = SharedKeep()

    async def main() -> None:
        store = SharedStore(keep, Life("n1"), lambda: False)
        await store.txn([], {"brokers/n1": b"{}"}, lease=await store.grant(0.05))
        watch = store.watch("brokers/")
        with trio.fail_after(5):
            await watch.wait()
        assert await store.get("brokers/n1") is None

    trio.run(main)


def test_store_that_is_away_answers_nobody_and_lets_no_lease_end() -> None:
    keep = SharedKeep()
    cut_off = [False]

    async def main() -> None:
        store = SharedStore(keep, Life("n1"), lambda: cut_off[0])
        await store.txn([], {"brokers/n1": b"{}"}, lease=await store.grant(0.05))
        keep.down = True
        with pytest.raises(MetadataUnavailable, match="T100"):
            await store.get("brokers/n1")
        time.sleep(0.1)  # noqa: ASYNC251 longer than the lease
        keep.come_back()
        assert await store.get("brokers/n1") is not None
        cut_off[0] = True
        with pytest.raises(MetadataUnavailable):
            await store.get("brokers/n1")

    trio.run(main)
