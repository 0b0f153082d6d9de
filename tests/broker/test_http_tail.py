"""Tails over HTTP: resumed exactly, shared, bounded, told what was left out, ended in words."""

import json
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

from tailrace.broker import feeds as feeds_module, http_connection, http_tail, tail as tail_module
from tailrace.broker.feeds import Feeds
from tailrace.broker.record_reading import RecordReader
from tailrace.broker.server import Ready, Server
from tests.broker.browsing import Browser, browse
from tests.broker.harness import Client, connected
from tests.broker.tailing import Event, Reader, Tail, tailing

ACCESS_LOG = Path(__file__).parent.parent / "data" / "apache_access.log"
T = "/api/v1/topics/t/tail"
CUTS = 50


async def create(ready: Ready, partitions: int = 1) -> bytes:
    async with connected(ready) as client:
        return await client.create("t", partitions)


def feeds(server: Server) -> Feeds:
    assert server.gateway is not None
    return server.gateway.records


async def everything(stream: trio.SocketStream, last: bytes) -> bytes:
    """What comes, up to some bytes."""
    found = b""
    with trio.fail_after(20):
        while last not in found:
            found += await stream.receive_some(65_536)
    return found


async def until_joined(server: Server, tails: int = 1) -> None:
    """They are at the end of the log, where the followers are."""
    for _ in range(100_000):
        followers = feeds(server)._followers.values()
        if followers and all(len(one.tails) == tails for one in followers):
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError("the tails did not join")


async def records(tail: Tail, count: int) -> list[Event]:
    found: list[Event] = []
    while len(found) < count:
        event = await tail.next()
        assert event is not None, "the tail ended"
        found.append(event)
    return found


def test_a_tail_shows_what_is_there_and_what_comes(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        topic_id = await create(ready)
        async with connected(ready) as client:
            await client.produce(topic_id, [b"one", b"two"])
            async with tailing(browser.host, browser.port, f"{T}?from=start") as tail:
                first, second = await records(tail, 2)
                found = await browser.get("/api/v1/topics/t/records?partition=0")
                assert [first.data, second.data] == found.json["records"]
                assert tail.reader.last_id == "0:2"
                await until_joined(server)
                await client.produce(topic_id, [b"three"])
                assert (await records(tail, 1))[0].data["value"] == "three"
            async with tailing(browser.host, browser.port, T) as tail:
                await until_joined(server)
                await client.produce(topic_id, [b"four"])
                assert (await records(tail, 1))[0].data["value"] == "four"

    browse(tmp_path, use)


async def produce(client: Client, topic_id: bytes, rng: random.Random, batches: int) -> None:
    for number in range(batches):
        values = [b"%d %d " % (number, n) + b"x" * rng.randrange(200) for n in range(20)]
        await client.produce(topic_id, values, partition=rng.randrange(3))
        await trio.sleep(rng.random() / 200)


async def read_with_cuts(browser: Browser, reader: Reader, rng: random.Random) -> list[Event]:
    """Cut off after so many bytes, fifty times, wherever that may be."""
    found: list[Event] = []
    for _ in range(CUTS):
        left = rng.randrange(1, 12_000)
        async with tailing(browser.host, browser.port, f"{T}?from=start", reader) as tail:
            while left > 0 and not tail.ended:
                before = reader.received_bytes
                with trio.move_on_after(0.05):
                    await tail.receive(min(left, rng.randrange(1, 3_000)))
                left -= max(1_000, reader.received_bytes - before)
            found += tail.events()
    return found


@pytest.mark.slow
def test_a_tail_that_is_cut_fifty_times_misses_nothing_and_sees_nothing_twice(
    tmp_path: Path,
) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        rng, reader = random.Random(5), Reader()
        topic_id = await create(ready, 3)
        found: list[Event] = []
        async with connected(ready) as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(produce, client, topic_id, rng, 120)
                found += await read_with_cuts(browser, reader, rng)
            ends = [(await client.fetch(topic_id, 0, part))[0].results[0] for part in range(3)]
        expected = sum(end.high_watermark for end in ends)
        assert expected == 2_400
        async with tailing(browser.host, browser.port, f"{T}?from=start", reader) as tail:
            found += await records(tail, expected - len(found))
        for part in range(3):
            mine = [e.data["offset"] for e in found if e.data["partition"] == part]
            assert mine == list(range(ends[part].high_watermark))

    browse(tmp_path, use)


@pytest.mark.slow
def test_a_reader_that_takes_everything_at_once_misses_nothing_of_a_burst(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        topic_id = await create(ready)
        async with connected(ready) as client, tailing(browser.host, browser.port, T) as tail:
            await until_joined(server)
            for number in range(10):
                await client.produce(topic_id, [b"%d" % number + b"x" * 1_000] * 200)
            events = await records(tail, 2_000)
        assert [event.data["offset"] for event in events] == list(range(2_000))

    browse(tmp_path, use)


def test_a_slow_reader_is_told_exactly_what_it_missed(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        topic_id = await create(ready)
        total = 0
        async with (
            connected(ready) as client,
            tailing(browser.host, browser.port, T, buffer_bytes=4_096) as tail,
        ):
            await until_joined(server)
            session = next(iter(feeds(server).sessions))
            while not session.tail.dropped or total < 4_000:
                total += 500
                await client.produce(topic_id, [b"x" * 2_000] * 500)
                bound = tail_module.QUEUE_BYTES + 2 * 32_768
                assert session.tail.waiting_bytes <= bound
            seen = dropped = 0
            while seen + dropped < total:
                event = await tail.next()
                assert event is not None
                seen += event.kind == "record"
                dropped += event.data["records"] if event.kind == "dropped" else 0
            assert seen + dropped == total
            assert dropped == session.tail.dropped > 0
            assert tail.reader.last_id == f"0:{total}"
            await client.produce(topic_id, [b"again"])
            assert (await records(tail, 1))[0].data["offset"] == total

    browse(tmp_path, use)


@pytest.mark.slow
def test_a_real_log_is_tailed_as_it_is_read(tmp_path: Path) -> None:
    lines = ACCESS_LOG.read_bytes().splitlines()

    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await create(ready)
        body = b"\n".join(json.dumps({"value": line.decode()}).encode() for line in lines)
        given = {"content-type": "application/x-ndjson"}
        answer = await browser.ask("POST", "/api/v1/topics/t/records", body, **given)
        assert answer.json["written"] == len(lines)
        async with tailing(browser.host, browser.port, f"{T}?from=start") as tail:
            tailed = [event.data for event in await records(tail, len(lines))]
        paged: list[Any] = []
        while len(paged) < len(lines):
            where = f"/api/v1/topics/t/records?partition=0&limit=1000&offset={len(paged)}"
            paged += (await browser.get(where)).json["records"]
        assert tailed == paged
        assert [record["value"].encode() for record in paged] == lines

    browse(tmp_path, use)


def test_above_its_rate_records_are_left_out_and_counted(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        topic_id = await create(ready)
        async with connected(ready) as client:
            await client.produce(topic_id, [b"x"] * 300)
        async with tailing(browser.host, browser.port, f"{T}?from=start&rate=10") as tail:
            events = await records(tail, 11)
        assert [event.data["offset"] for event in events[:10]] == list(range(10))
        assert events[10] == Event("dropped", {"records": 290})
        assert tail.reader.last_id == "0:300"

    browse(tmp_path, use)


def test_tails_share_one_follower_which_ends_with_the_last(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        topic_id = await create(ready)
        host, port = browser.host, browser.port
        async with tailing(host, port, T) as first, tailing(host, port, T) as second:
            await until_joined(server, 2)
            assert len(feeds(server)._followers) == 1
            async with connected(ready) as client:
                await client.produce(topic_id, [b"both"])
            for tail in (first, second):
                assert (await records(tail, 1))[0].data["value"] == "both"
        while feeds(server).sessions or feeds(server)._followers:
            await trio.lowlevel.checkpoint()

    browse(tmp_path, use)


def test_a_reader_that_speaks_http_1_0_gets_bare_events(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        topic_id = await create(ready)
        async with (
            connected(ready) as client,
            await trio.open_tcp_stream(browser.host, browser.port) as stream,
        ):
            await stream.send_all(f"GET {T} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            head, _, body = (await everything(stream, b"id: 0:0\n\n")).partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in head.lower()
            await until_joined(server)
            await client.produce(topic_id, [b"one", b"two"])
            body += await everything(stream, b"id: 0:2")
            assert body.startswith(b"id: 0:0\n\nevent: record\nid: 0:1\ndata: {")

    browse(tmp_path, use)


def test_silence_is_broken_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_tail, "KEEP_ALIVE_S", 0.001)

    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await create(ready)
        async with tailing(browser.host, browser.port, T) as tail:
            while tail.reader.comments < 3:
                await tail.receive(1_000)

    browse(tmp_path, use)


def test_the_deletion_of_its_topic_ends_a_tail_with_the_reason(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await create(ready, 2)
        async with tailing(browser.host, browser.port, T) as tail:
            await until_joined(server)
            async with connected(ready) as client:
                await client.delete("t")
            event = await tail.next()
            assert event is not None
            assert (event.kind, event.data["error"]["code"]) == ("error", "T010")
            assert await tail.next() is None

    browse(tmp_path, use)


@pytest.mark.provokes("T000")
def test_a_bug_ends_the_tails_it_concerns_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        topic_id = await create(ready)
        async with tailing(browser.host, browser.port, T) as tail:
            await until_joined(server)
            monkeypatch.setattr(RecordReader, "open", broken)
            async with connected(ready) as client:
                await client.produce(topic_id, [b"x"])
            event = await tail.next()
            assert event is not None
            assert (event.kind, event.data["error"]["code"]) == ("error", "T000")
        assert (await browser.get("/livez")).status == 200

    async def broken(*_: object) -> None:
        raise RuntimeError("boom")

    browse(tmp_path, use)
    assert "tails of t[0] failed: RuntimeError('boom')" in caplog.messages


def test_a_stop_of_the_broker_ends_tails_at_once(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await create(ready)
        async with tailing(browser.host, browser.port, T) as tail:
            await until_joined(server)
            server.stop()
            event = await tail.next()
            assert event is not None
            assert (event.kind, event.data["error"]["code"]) == ("error", "T033")
            assert await tail.next() is None

    browse(tmp_path, use)


def test_a_reader_that_takes_nothing_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "WRITE_STALL_S", 0.05)

    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        topic_id = await create(ready)
        async with connected(ready) as client:
            for _ in range(12):
                await client.produce(topic_id, [b"x" * 1_000_000])
        where = f"{T}?from=start"
        async with tailing(browser.host, browser.port, where, buffer_bytes=4_096):
            while feeds(server).sessions:  # noqa: ASYNC110
                await trio.sleep(0.001)

    browse(tmp_path, use)


@pytest.mark.parametrize(
    ("query", "last_id", "status", "code"),
    [
        ("?from=later", "", 400, "T062"),
        ("?rate=0", "", 400, "T062"),
        ("?partition=2", "", 404, "T011"),
        ("", "0:0,7:1", 400, "T062"),
        ("?partition=1", "0:0", 400, "T062"),
        ("", "0:5,1:0", 416, "T041"),
        ("?from=5", "", 416, "T041"),
    ],
)
def test_what_is_wrong_with_a_tail_is_said_before_it_begins(
    tmp_path: Path, query: str, last_id: str, status: int, code: str
) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await create(ready, 2)
        reader = Reader(last_id=last_id)
        async with tailing(browser.host, browser.port, T + query, reader) as tail:
            assert await tail.next() is None
        assert reader.status == status
        assert json.loads(reader.body)["error"]["code"] == code

    browse(tmp_path, use)


def test_many_tails_take_longer_and_not_more_of_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds_module, "FLUSHES_PER_S", 1_000)
    monkeypatch.setattr(feeds_module, "FLUSH_S", 0.001)

    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        topic_id = await create(ready)
        async with connected(ready) as client, AsyncExitStack() as stack:
            tails = [
                await stack.enter_async_context(tailing(browser.host, browser.port, T))
                for _ in range(12)
            ]
            await until_joined(server, 12)
            for number in range(3):
                await client.produce(topic_id, [b"%d" % number])
                for tail in tails:
                    assert (await records(tail, 1))[0].data["value"] == str(number)

    browse(tmp_path, use)


def test_there_are_only_so_many_tails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_tail, "TAILS_MAX", 1)

    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await create(ready)
        async with tailing(browser.host, browser.port, T):
            assert server.open_requests() == ["1 tail over http"]
            answer = await browser.get(T)
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.error.startswith("T123")

    browse(tmp_path, use)


def test_one_partition_may_be_tailed_alone(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        topic_id = await create(ready, 2)
        async with connected(ready) as client:
            await client.produce(topic_id, [b"zero"], partition=0)
            await client.produce(topic_id, [b"one"], partition=1)
        async with tailing(browser.host, browser.port, f"{T}?partition=1&from=-1") as tail:
            event = (await records(tail, 1))[0]
        assert (event.data["value"], tail.reader.last_id) == ("one", "1:1")

    browse(tmp_path, use)
