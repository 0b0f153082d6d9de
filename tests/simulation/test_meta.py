"""The simulated metadata store keeps the contract, and its own promises about what goes wrong."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random

import pytest
import trio
import trio.testing

from tailrace.broker.metadata import MetadataStore
from tailrace.protocol.errors import MetadataUnavailable
from tailrace.simulation.life import Life, NodeDead
from tailrace.simulation.meta import MetaKeep, SimMeta
from tests.broker.metadata_contract import MetadataContract


class TestSimMeta(MetadataContract):
    def open(self) -> AbstractAsyncContextManager[MetadataStore]:
        return opened()

    def clock(self) -> trio.abc.Clock:
        return trio.testing.MockClock(autojump_threshold=0)

    async def pass_seconds(self, seconds: float) -> None:
        await trio.sleep(seconds)


@asynccontextmanager
async def opened() -> AsyncIterator[MetadataStore]:
    store = SimMeta(MetaKeep(Random(1)), Life("n1"))
    yield store
    await store.aclose()


def test_what_goes_wrong() -> None:
    async def main() -> None:
        keep, life = MetaKeep(Random(1)), Life("n1")
        store = SimMeta(keep, life)
        keep.lost_replies = 1.0
        with pytest.raises(MetadataUnavailable):
            await store.txn([], {"a": b"1"})
        keep.lost_replies = 0.0
        assert await store.get("a") is not None, "applied, though the reply was lost (R16)"
        keep.down = True
        with pytest.raises(MetadataUnavailable):
            await store.get("a")
        keep.down = False
        await store.txn([], {"leased": b""}, lease=await store.grant(60))
        keep.end_all_leases()
        assert await store.get("leased") is None
        life.dead = True
        with pytest.raises(NodeDead):
            await store.txn([], {"zombie": b""})
        assert "zombie" not in keep.entries

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
