"""Opening stores on etcd, and what stands between a store and etcd in tests."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any

import trio

from tailrace.broker.config import ClusterConfig
from tailrace.broker.metadata_etcd import EtcdStore, open_etcd
from tailrace.broker.threads import ThreadOffload

LONG_S = 30.0  # for one call: a machine that stands still is no outage


@asynccontextmanager
async def opened(
    urls: list[str],
    prefix: str = "/t",
    settings: Mapping[str, Any] = MappingProxyType({}),
    *,
    call_s: float = LONG_S,
) -> AsyncGenerator[EtcdStore, None]:
    """A store. What goes wrong inside is raised as it is, not as a group."""
    cluster = ClusterConfig("etcd", tuple(urls), prefix, **settings)
    try:
        async with trio.open_nursery() as nursery:
            store = await open_etcd(cluster, nursery, ThreadOffload(), call_s=call_s)
            try:
                yield store
            finally:
                with trio.CancelScope(shield=True):
                    await store.aclose()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


class Between:
    """A proxy in front of one member that can lose answers or hold everything back."""

    def __init__(self, url: str) -> None:
        self._host, port = url.removeprefix("http://").split(":")
        self._port = int(port)
        self.url = ""
        self.losing = False  # the next answers are dropped, and their connections closed
        self.lost = 0
        self.connections = 0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            serve: Callable[..., Any] = trio.serve_listeners
            nursery.start_soon(serve, self._serve, [listener])
            task_status.started()

    async def _serve(self, client: trio.SocketStream) -> None:
        self.connections += 1
        server = await trio.open_tcp_stream(self._host, self._port)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._there, client, server, nursery.cancel_scope)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async for data in server:
                    if self.losing:
                        self.lost += 1
                        break
                    await client.send_all(data)
            nursery.cancel_scope.cancel()

    async def _there(
        self, client: trio.SocketStream, server: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in client:
                await server.send_all(data)
        scope.cancel()


async def woken(wait: Callable[[], Any], seconds: float = 60) -> None:
    """A watch wakes."""
    with trio.fail_after(seconds):
        await wait()
