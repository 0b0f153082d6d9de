"""Whom the gateway asks, how often, and how watches go on: against members that answer by script.

Nothing here needs etcd: ``httpx2.MockTransport`` stands for the network, a mock clock for time.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

import httpx2
import pytest
import trio
import trio.testing

from tailrace.broker.etcd_gateway import Gateway, Login
from tailrace.broker.etcd_watch import QUIET_S
from tailrace.broker.metadata_etcd import EtcdStore
from tailrace.protocol.errors import MetadataUnavailable

A, B = "http://a:1", "http://b:1"
Handler = Callable[[httpx2.Request], Coroutine[None, None, httpx2.Response]]
HEADER = {"cluster_id": "1", "revision": "10"}
EMPTY = {"header": HEADER}


def answer(document: object, status: int = 200) -> httpx2.Response:
    return httpx2.Response(status, json=document)


def refusal(message: str, code: int) -> httpx2.Response:
    return answer({"error": message, "message": message, "code": code}, 500)


def asked(request: httpx2.Request) -> str:
    return f"{request.url.host} {request.url.path.removeprefix('/v3/')}"


def run(handler: Handler, check: Callable[[EtcdStore], Awaitable[None]], **more: Login) -> None:
    async def main() -> None:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(handler)) as client:
            await check(EtcdStore(Gateway([A, B], client, more.get("login"), call_s=4), "/t"))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("sent", [True, False])
def test_a_change_is_sent_again_only_if_nobody_was_reached(sent: bool) -> None:
    seen: list[str] = []

    async def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(asked(request))
        if request.url.host == "a":
            raise httpx2.ReadError("reset") if sent else httpx2.ConnectError("refused")
        return answer({**EMPTY, "succeeded": True})

    async def check(store: EtcdStore) -> None:
        if sent:
            with pytest.raises(MetadataUnavailable, match="not known"):
                await store.txn([], {"k": b""})
            assert seen == ["a kv/txn"]
        assert await store.txn([], {"k": b""}) == 10
        assert seen == ["a kv/txn", "b kv/txn"]

    run(handler, check)


@pytest.mark.parametrize("code", [1, 2, 4, 13, 14])
def test_a_change_that_etcd_gave_up_may_have_been_made(code: int) -> None:
    seen: list[str] = []

    async def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(asked(request))
        return refusal("etcdserver: request timed out", code)

    async def check(store: EtcdStore) -> None:
        with pytest.raises(MetadataUnavailable, match="request timed out; whether the change"):
            await store.txn([], {"k": b""})
        assert len(seen) == 1
        with pytest.raises(MetadataUnavailable, match=r"http://b:1 failed: .*; http://a:1: etcd"):
            await store.get("k")
        assert len(seen) == 3

    run(handler, check)


def test_a_call_is_bounded_however_many_hang() -> None:
    async def handler(request: httpx2.Request) -> httpx2.Response:
        await trio.sleep_forever()
        raise AssertionError

    async def check(store: EtcdStore) -> None:
        for call in (store.get("k"), store.txn([], {}), store.list(""), store.keepalive(1)):
            began = trio.current_time()
            with pytest.raises(MetadataUnavailable, match="no answer within"):
                await call
            assert trio.current_time() - began <= 4.01

    run(handler, check)


def test_a_refused_token_is_replaced_once() -> None:
    tokens = iter(["one", "two", "three"])
    good: set[str] = set()
    seen: list[str] = []

    async def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(asked(request))
        if request.url.path.endswith("authenticate"):
            assert json.loads(request.content) == {"name": "u", "password": "p"}
            return answer({**EMPTY, "token": next(tokens)})
        if request.headers.get("Authorization") not in good:
            return refusal("etcdserver: invalid auth token", 16)
        return answer({**EMPTY, "succeeded": True})

    async def check(store: EtcdStore) -> None:
        good.add("two")
        assert await store.txn([], {"k": b""}) == 10
        login = "a auth/authenticate"
        assert seen == [login, "a kv/txn", login, "a kv/txn"]
        good.clear()
        with pytest.raises(MetadataUnavailable, match="invalid auth token"):
            await store.txn([], {"k": b""})
        assert seen[4:] == ["a kv/txn", login, "a kv/txn"]

    run(handler, check, login=Login("u", "p"))


def test_an_etcd_that_went_back_in_time_is_not_believed() -> None:
    revisions = iter(["10", "9", "10"])

    async def handler(request: httpx2.Request) -> httpx2.Response:
        return answer({"header": {"cluster_id": "1", "revision": next(revisions)}})

    async def check(store: EtcdStore) -> None:
        assert await store.get("k") is None
        with pytest.raises(MetadataUnavailable, match="revision 9 after 10"):
            await store.get("k")
        assert await store.get("k") is None

    run(handler, check)


def test_who_speaks_something_else_is_named() -> None:
    async def handler(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(404, text="Not Found")

    async def check(store: EtcdStore) -> None:
        with pytest.raises(MetadataUnavailable, match="HTTP status 404, not etcd's API v3"):
            await store.greet()

    run(handler, check)


def test_an_etcd_that_is_too_old_is_refused() -> None:
    async def handler(request: httpx2.Request) -> httpx2.Response:
        return answer({**EMPTY, "version": "3.3.27"})

    async def check(store: EtcdStore) -> None:
        with pytest.raises(MetadataUnavailable, match=r"etcd 3\.3\.27 is older than 3\.4"):
            await store.greet()

    run(handler, check)


# ── watches ──────────────────────────────────────────────────────────────────────────────────

CREATED = {"header": HEADER, "created": True}


class Lines(httpx2.AsyncByteStream):
    """A stream: documents, seconds of silence, and how it ends."""

    def __init__(self, *script: dict[str, object] | float | Exception) -> None:
        self._script = script

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for one in self._script:
            if isinstance(one, Exception):
                raise one
            if isinstance(one, dict):
                line = json.dumps(one if "error" in one else {"result": one}).encode() + b"\n"
                yield line[:7]
                yield line[7:]
            else:
                await trio.sleep(one)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


FOREVER = 1e9
ENDS: list[Lines] = [
    Lines({**CREATED, "canceled": True, "cancel_reason": "permission denied"}, FOREVER),
    Lines(CREATED, 1, {"header": HEADER, "canceled": True, "compact_revision": "7"}, FOREVER),
    Lines(CREATED, 1, {"error": {"grpc_code": 14, "message": "etcdserver: no leader"}}),
    Lines(CREATED, 1, httpx2.ReadError("reset")),
    Lines(CREATED, 1),
    Lines(CREATED, FOREVER),
    Lines(FOREVER),
    Lines({"nonsense": 1}, {"result": 7}, FOREVER),
]


@pytest.mark.parametrize("first", ENDS)
def test_however_a_stream_ends_the_next_one_wakes_everybody(first: Lines) -> None:
    """Also one that is cancelled because what it stood at was compacted."""
    streams = iter([first, Lines(CREATED, FOREVER)])
    opened: list[float] = []

    async def handler(request: httpx2.Request) -> httpx2.Response:
        assert json.loads(request.content) == {
            "create_request": {"key": "L3Qv", "range_end": "L3Qw"}  # /t/ to /t0, from now on
        }
        assert request.headers["Grpc-Metadata-hasleader"] == "true"
        opened.append(trio.current_time())
        stream = next(streams, None)
        assert stream is not None, "a stream that goes on is not left"
        return httpx2.Response(200, stream=stream)

    async def check(store: EtcdStore) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.watches.run)
            watch, gone = store.watch("a/"), store.watch("b/")
            gone.close()
            with trio.fail_after(QUIET_S + 5):
                while len(opened) < 2:
                    await watch.wait()
                await trio.sleep(0.5)
                with trio.move_on_after(0):
                    await watch.wait()
            assert opened[1] - opened[0] <= QUIET_S + 1
            await store.watches.aclose()

    run(handler, check)


def test_only_those_below_whose_prefix_it_happened_are_woken() -> None:
    event: dict[str, object] = {"header": HEADER, "events": [{"kv": {"key": "L3QvYS8x"}}]}  # /t/a/1
    stream = Lines(CREATED, 1, event, FOREVER)

    async def handler(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, stream=stream)

    async def check(store: EtcdStore) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.watches.run)
            near, far = store.watch("a/"), store.watch("b/")
            await near.wait()
            await far.wait()
            with trio.fail_after(2):
                await near.wait()
            with trio.move_on_after(2) as waiting:
                await far.wait()
            assert waiting.cancelled_caught
            await store.watches.aclose()

    run(handler, check)


def test_without_any_stream_watches_wake_now_and_then() -> None:
    async def handler(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    async def check(store: EtcdStore) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.watches.run)
            watch = store.watch("a/")
            for _ in range(3):
                with trio.fail_after(10):
                    await watch.wait()
            await store.watches.aclose()

    run(handler, check)


def test_a_request_that_finds_its_member_hanging_moves_the_watch_too() -> None:
    hosts: list[str] = []

    async def handler(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v3/watch":
            hosts.append(request.url.host)
            return httpx2.Response(200, stream=Lines(CREATED, FOREVER))
        if request.url.host == "a":
            await trio.sleep_forever()
        return answer(EMPTY)

    async def check(store: EtcdStore) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.watches.run)
            watch = store.watch("")
            await watch.wait()
            assert await store.get("k") is None
            with trio.fail_after(1):
                await watch.wait()
            assert hosts == ["a", "b"]
            await store.watches.aclose()

    run(handler, check)
