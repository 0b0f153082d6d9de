"""Records over HTTP: written by POST, read page by page."""

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

from tailrace.broker import http_guard, http_pages, http_records
from tailrace.broker.server import Ready, Server
from tailrace.protocol.routing import Router
from tests.broker.browsing import Answer, Browser, browse
from tests.broker.harness import connected

ACCESS_LOG = Path(__file__).parent.parent / "data" / "apache_access.log"
T = "/api/v1/topics/t"


async def topic(browser: Browser, partitions: int = 1, *, name: str = "t", **config: str) -> None:
    document = {"name": name, "partitions": partitions, "config": config}
    assert (await browser.send("POST", "/api/v1/topics", document)).status == 201


async def post(browser: Browser, *records: object, acks: object = "all") -> Answer:
    return await browser.send("POST", f"{T}/records", {"records": records, "acks": acks})


async def post_lines(browser: Browser, body: bytes, query: str = "") -> Answer:
    given = {"content-type": "application/x-ndjson"}
    return await browser.ask("POST", f"{T}/records{query}", body, **given)


async def page(browser: Browser, query: str = "", partition: int = 0) -> Any:
    answer = await browser.get(f"{T}/records?partition={partition}{query}")
    assert answer.status == 200, answer.error
    return answer.json


async def values(browser: Browser, query: str = "", partition: int = 0) -> list[Any]:
    return [record["value"] for record in (await page(browser, query, partition))["records"]]


# ── writing ──────────────────────────────────────────────────────────────────────────────────


def test_records_come_back_as_they_were_given(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser)
        answer = await post(
            browser,
            {"value": {"n": 1}, "key": "k", "headers": [["src", "web"]], "timestamp": 7},
            {"value": None, "key": "k"},
            {"value": "AP8=", "value_encoding": "base64"},
        )
        assert answer.status == 200
        results = answer.json["results"]
        assert [one["offset"] for one in results] == [0, 1, 2]
        assert (answer.json["written"], answer.json["failed"]) == (3, 0)
        first, tombstone, raw = (await page(browser))["records"]
        assert first == {
            "topic": "t",
            "partition": 0,
            "offset": 0,
            "timestamp": 7,
            "append_time": results[0]["append_time"],
            "key": "k",
            "key_encoding": "utf8",
            "value": {"n": 1},
            "value_encoding": "json",
            "headers": [["src", "web"]],
            "size_bytes": 14,
        }
        assert (tombstone["value"], tombstone["value_encoding"]) == (None, "null")
        assert (raw["value"], raw["value_encoding"]) == ("AP8=", "base64")

    browse(tmp_path, use)


def test_bad_records_do_not_keep_good_ones_out(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser, max_record="1KiB")
        lines = [
            b'{"value":"first"}',
            b'{"value":',
            b'{"value":"%s"}' % (b"x" * 2_000),
            b'{"value":"ahead","timestamp":9000000000000}',
            b'{"value":"\\ud800"}',
            b'{"value":"%s"}' % (b"x" * 100_000),
            b'{"value":"last"}',
        ]
        answer = await post_lines(browser, b"\n".join(lines))
        assert answer.status == 207
        assert (answer.json["written"], answer.json["failed"]) == (2, 5)
        results = answer.json["results"]
        codes = [one["error"]["code"] if "error" in one else one["offset"] for one in results]
        assert codes == [0, "T062", "T021", "T022", "T062", "T021", 1]
        assert results[1]["error"]["message"].startswith("line 2: not JSON")
        assert await values(browser) == ["first", "last"]

    browse(tmp_path, use)


def test_where_nothing_could_be_written_the_first_error_is_the_answer(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser, max_record="1KiB")
        answer = await post(browser, {"value": "x" * 2_000}, {"nothing": 1})
        assert answer.status == 413
        assert answer.error.startswith("T021")
        assert (answer.json["written"], answer.json["failed"]) == (0, 2)
        assert (await post(browser, {"nothing": 1})).status == 400
        assert (await post(browser)).json == {"results": [], "written": 0, "failed": 0}
        assert await values(browser) == []

    browse(tmp_path, use)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{}", b'{"records":1}', b'{"records":[{"value":1}}', b'{"records":[]}x'),
        *(b'{"records":[],"acks":0}', b'{"records":[],"more":1}'),
        b'{"records":[],"records":[]}',
    ],
)
def test_what_is_no_document_of_records_is_refused_whole(tmp_path: Path, body: bytes) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser)
        given = {"content-type": "application/json"}
        answer = await browser.ask("POST", f"{T}/records", body, **given)
        assert answer.status == 400
        assert answer.error.startswith("T062")

    browse(tmp_path, use)


def test_more_than_ten_thousand_records_are_refused_before_any_is_written(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser)
        answer = await post_lines(browser, b'{"value":1}\n' * 10_001)
        assert answer.status == 413
        assert "10,000 records; nothing was written" in answer.error
        assert await values(browser) == []

    browse(tmp_path, use)


def test_keys_decide_the_partition_and_records_without_one_go_together(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser, partitions=4)
        keys = [f"key-{number}" for number in range(20)]
        answer = await post(browser, *({"key": key, "value": key} for key in keys))
        async with connected(ready) as client:
            found = (await client.metadata("t")).topics[0]
        router = Router([one.key_first for one in found.partitions])
        got = [one["partition"] for one in answer.json["results"]]
        assert got == [router.partition(key.encode()) for key in keys]
        seen: set[int] = set()
        for _ in range(4):
            answer = await post(browser, {"value": 1}, {"value": 2})
            first, second = answer.json["results"]
            assert first["partition"] == second["partition"]
            seen.add(first["partition"])
        assert seen == {0, 1, 2, 3}

    browse(tmp_path, use)


def test_topics_are_created_as_for_any_producer(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        assert (await post(browser, {"value": "1"})).status == 200
        assert await values(browser) == ["1"]
        answer = await browser.send("POST", "/api/v1/topics/x/records", {"records": [{"no": 1}]})
        assert answer.status == 400
        assert (await browser.get("/api/v1/topics/x")).status == 404  # nothing to be written

    browse(tmp_path, use, {"broker.auto_create": True})


def test_without_auto_create_a_missing_topic_is_named(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        answer = await post(browser, {"value": 1})
        assert answer.status == 404
        assert "does not exist (auto-create is off)" in answer.error

    browse(tmp_path, use)


def test_acks_stand_in_the_body_or_in_the_query(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser)
        assert (await post(browser, {"value": 1}, acks=1)).status == 200
        assert (await post_lines(browser, b'{"value":2}', "?acks=1")).status == 200
        weak = server.metrics.topic("t").weak_acks(1)
        assert weak.value == 2
        body = {"records": [], "acks": "all"}
        assert (await browser.send("POST", f"{T}/records?acks=1", body)).status == 400

    browse(tmp_path, use)


# ── reading ──────────────────────────────────────────────────────────────────────────────────


def test_offsets_are_those_of_the_command_line(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser)
        await post(browser, *({"value": n} for n in range(5)))
        for query, expected in (
            ("", [0, 1, 2, 3, 4]),
            ("&offset=start&limit=2", [0, 1]),
            ("&offset=3", [3, 4]),
            ("&offset=-2", [3, 4]),
            ("&offset=-9", [0, 1, 2, 3, 4]),
            ("&offset=end", []),
            ("&offset=5", []),
            ("&offset=@1h", [0, 1, 2, 3, 4]),
            ("&offset=@2020-01-01T00:00+01:00", [0, 1, 2, 3, 4]),
            ("&offset=@2999-01-01T00:00Z", []),
        ):
            found = await values(browser, query)
            assert [int(value) for value in found] == expected, query
        for query in ("&offset=later", "&offset=@soon", "&limit=1001", "&wait=31s", "&decode=x"):
            answer = await browser.get(f"{T}/records?partition=0{query}")
            assert answer.status == 400
            assert answer.error.startswith("T062")
        wrong = await browser.get(f"{T}/records?partition=0&offset=later")
        assert wrong.error == (
            "T062: offset is 'later', not start, end, N, -N, @2h or @2026-11-20T10:00"
        )
        wrong = await browser.get(f"{T}/records?partition=0&wait=31s")
        assert wrong.error == ("T062: wait is '31s', not a duration like 500ms or 10s, at most 30s")

    browse(tmp_path, use)


def test_offsets_outside_of_the_log_are_told_with_its_ends(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser)
        await post(browser, *({"value": n} for n in range(5)))
        await browser.ask("DELETE", f"{T}/records?partition=0&before=2")
        for offset in (1, 6):
            answer = await browser.get(f"{T}/records?partition=0&offset={offset}")
            assert answer.status == 416
            error = answer.json["error"]
            assert (error["details"]["start"], error["details"]["end"]) == (2, 5)
        found = await page(browser)
        assert (found["log_start"], found["high_watermark"], found["next_offset"]) == (2, 5, 5)
        assert (await browser.get(f"{T}/records?partition=1")).status == 404
        assert (await browser.get("/api/v1/topics/no/records?partition=0")).status == 404

    browse(tmp_path, use)


def test_a_page_waits_for_its_first_record(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser)
        found: list[Any] = []

        async def read() -> None:
            found.append(await page(browser, "&wait=30s"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            while not any(partition._readers for partition in _partitions(server)):
                await trio.lowlevel.checkpoint()
            await post(browser, {"value": "came"})
        assert [record["value"] for record in found[0]["records"]] == ["came"]

    browse(tmp_path, use)


def _partitions(server: Server) -> list[Any]:
    assert server.gateway is not None
    return list(server.gateway.node.shelf)


def test_pages_go_over_gaps(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser)
        for n in range(30):
            await post(browser, {"value": n, "key": "a"})
        body = {"keys": [], "records": [[0, n] for n in range(30) if n not in (7, 29)]}
        answer = await browser.send("POST", f"{T}/erasures", body)
        assert answer.status == 202
        where = f"{T}/erasures/{answer.json['id']}"
        for _ in range(1_000):
            if (await browser.get(where)).json["completed_at"] is not None:
                break
        seen: list[Any] = []
        offset = 0
        while True:
            found = await page(browser, f"&offset={offset}&limit=1")
            if not found["records"]:
                break
            assert found["next_offset"] > offset
            offset = found["next_offset"]
            seen += found["records"]
        assert [record["offset"] for record in seen if record["value"] is not None] == [7, 29]
        assert offset == 30

    browse(tmp_path, use)


def test_large_pages_are_sent_in_pieces_and_end_at_their_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_pages, "PAGE_BYTES_MAX", 300_000)

    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser)
        await post(browser, *({"value": f"{n} " + "x" * 1_000} for n in range(1_000)))
        offset, got = 0, list[str]()
        while True:
            found = await page(browser, f"&offset={offset}&limit=1000")
            if not found["records"]:
                break
            assert len(json.dumps(found["records"])) < 330_000
            got += [record["value"] for record in found["records"]]
            offset = found["next_offset"]
        assert [int(value.split()[0]) for value in got] == list(range(1_000))

    browse(tmp_path, use)


def test_who_does_not_read_keeps_nobody_from_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does what waits for such readers grow: large answers have one budget."""
    monkeypatch.setattr(http_guard, "ANSWERS_BYTES_MAX", 1)  # one alone may be larger

    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser)
        await post(browser, *({"value": "x" * 1_000} for _ in range(3_000)))
        await topic(browser, name="large")
        large = "/api/v1/topics/large/records"
        for _ in range(4):
            document = {"records": [{"value": "x" * 1_000_000}]}
            assert (await browser.send("POST", large, document)).status == 200
        async with AsyncExitStack() as streams:
            for path in [f"{large}?partition=0"] + 8 * [f"{T}/records?partition=0&limit=1000"]:
                sock = trio.socket.socket()
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4_096)
                await sock.connect((browser.host, browser.port))
                stream = await streams.enter_async_context(trio.SocketStream(sock))
                await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert (await stream.receive_some(15)).startswith(b"HTTP/1.1 200")
            assert len(await values(browser, "&limit=1000")) == 1_000
            refused = await browser.get(f"{large}?partition=0&limit=1")
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            assert refused.error.startswith("T123: request refused: the limit of 1 bytes of HTTP")
            many = await post_lines(browser, b'{"value":1}\n' * 2_000)
            assert (many.status, many.json["error"]["code"]) == (503, "T123")
            assert (await page(browser, "&offset=end"))["high_watermark"] == 3_000
        with trio.fail_after(20):
            while (await browser.get(f"{large}?partition=0&limit=1")).status != 200:
                pass

    browse(tmp_path, use)


def test_a_batch_that_cannot_be_opened_is_corrupt_and_ends_the_page_before_it(
    tmp_path: Path,
) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser)
        await post(browser, {"value": "good"})
        async with connected(ready) as client:
            topic_id = (await client.metadata("t")).topics[0].topic_id
            await client.produce(topic_id, [b"fine"])
        await post(browser, {"value": "hidden"})
        _damage(tmp_path)
        found = await page(browser)
        assert [record["value"] for record in found["records"]] == ["good"]
        assert found["next_offset"] == 1
        answer = await browser.get(f"{T}/records?partition=0&offset=1")
        assert answer.status == 500
        assert answer.error.startswith("T035")

    browse(tmp_path, use)


def _damage(tmp_path: Path) -> None:
    """In the columns of the batch with b"fine", of which the broker knows nothing."""
    for path in (tmp_path / "data").rglob("*.log"):
        data = path.read_bytes()
        if b"fine" in data:
            at = data.index(b"fine") - 2  # the bytes' own header
            path.write_bytes(data[:at] + b"\xc1" + data[at + 1 :])
            return
    raise AssertionError("there is no such batch")


@pytest.mark.slow
def test_a_real_log_goes_in_by_lines_and_comes_out_page_by_page(tmp_path: Path) -> None:
    lines = ACCESS_LOG.read_bytes().splitlines()

    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        await topic(browser)
        body = b"\n".join(json.dumps({"value": line.decode()}).encode() for line in lines)
        answer = await post_lines(browser, body)
        assert (answer.status, answer.json["written"]) == (200, len(lines))
        assert [one["offset"] for one in answer.json["results"]] == list(range(len(lines)))
        offset, got = 0, list[bytes]()
        while offset < len(lines):
            found = await page(browser, f"&offset={offset}&limit=1000")
            got += [record["value"].encode() for record in found["records"]]
            offset = found["next_offset"]
        assert got == lines

    browse(tmp_path, use)


def test_every_parameter_that_may_be_a_duration_has_its_bound() -> None:
    assert http_records.read_wait("30s") == 30.0
    for text in ("31s", "forever", "1", ""):
        with pytest.raises(ValueError, match=r"30s|number"):
            http_records.read_wait(text)
