"""The store on etcd keeps the contract; what etcd does to it, and what it says then."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio

from tailrace.broker.config import ClusterConfig
from tailrace.broker.metadata import MetadataStore
from tailrace.broker.metadata_etcd import EtcdStore, open_etcd
from tailrace.broker.threads import ThreadOffload
from tests.broker.metadata_contract import MetadataContract
from tests.etcd_process import Etcd, etcd_cluster, needs_etcd

pytestmark = needs_etcd


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """One member, which the tests of this file share, each below a prefix of its own."""
    with etcd_cluster(tmp_path_factory.mktemp("etcd")) as found:
        yield found


@asynccontextmanager
async def opened(
    urls: list[str], prefix: str = "/t", *, call_s: float = 20.0, **more: Any
) -> AsyncIterator[EtcdStore]:
    """A store; ``call_s`` is long, so that a machine that stands still is not an outage."""
    cluster = ClusterConfig("etcd", tuple(urls), prefix, **more)
    async with trio.open_nursery() as nursery:
        store = await open_etcd(cluster, nursery, ThreadOffload(), call_s=call_s)
        try:
            yield store
        finally:
            with trio.CancelScope(shield=True):
                await store.aclose()


class TestEtcdStore(MetadataContract):
    lease_s = 5.0

    @pytest.fixture(autouse=True)
    def _place(self, etcd: Etcd, request: pytest.FixtureRequest) -> None:
        self.urls, self.prefix = etcd.urls, f"/{request.node.name}"

    def open(self) -> AbstractAsyncContextManager[MetadataStore]:
        return opened(self.urls, self.prefix)

    async def pass_seconds(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def outlive(self, store: MetadataStore, lease: int, key: str) -> None:
        with trio.fail_after(60):
            while await store.get(key) is not None:  # noqa: ASYNC110 (it is etcd that acts)
                await trio.sleep(0.1)
