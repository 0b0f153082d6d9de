"""Topics over HTTP."""

from pathlib import Path

import pytest

from tailrace.broker import http_topics
from tailrace.broker.catalog import Topic
from tailrace.broker.describing import list_here
from tailrace.broker.node import Node
from tailrace.broker.server import Ready, Server
from tailrace.protocol.shapes import TopicInfo
from tests.broker.browsing import Browser, browse
from tests.broker.harness import connected
from tests.broker.scraping import scrape

TOPICS = "/api/v1/topics"


def test_topics_are_listed_in_parts(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        assert (await browser.get(TOPICS)).json == {"topics": [], "next": None}
        async with connected(ready) as client:
            for name in ("b", "c", "a"):
                topic_id = await client.create(name, partitions=2)
            await client.produce(topic_id, [b"one", b"two"])
        answer = await browser.get(TOPICS)
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert [topic["name"] for topic in answer.json["topics"]] == ["a", "b", "c"]
        first = answer.json["topics"][0]
        assert (first["partitions"], first["records"], first["internal"]) == (2, 2, False)
        seen: list[str] = []
        after = ""
        while True:
            part = (await browser.get(f"{TOPICS}?limit=2{after}")).json
            seen += [topic["name"] for topic in part["topics"]]
            if part["next"] is None:
                break
            after = f"&after={part['next']}"
        assert seen == ["a", "b", "c"]

    browse(tmp_path, use)


def test_a_list_is_described_some_topics_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a thousand do not hold everybody up; one may be deleted meanwhile."""
    monkeypatch.setattr(http_topics, "PARTITIONS_AT_ONCE", 4)
    listed: list[list[str]] = []
    deleted: list[str] = []

    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        async with connected(ready) as client:
            for name in "abcdef":
                await client.create(name, partitions=2)
        gateway = server.gateway
        assert gateway is not None

        async def delete() -> None:
            if not deleted:
                deleted.append("d")
                await gateway.node.topics.delete("d")

        def noting(node: Node, topics: list[Topic]) -> list[TopicInfo]:
            listed.append([topic.name for topic in topics])
            if len(listed) == 1:
                monkeypatch.setattr(gateway.node.flusher, "give_way", delete)
            return list_here(node, topics)

        monkeypatch.setattr(http_topics, "list_here", noting)
        found = (await browser.get(f"{TOPICS}?limit=5")).json
        assert [topic["name"] for topic in found["topics"]] == ["a", "b", "c", "e"]
        assert found["next"] == "e"

    browse(tmp_path, use)
    assert listed == [["a", "b"], ["c", "e"]]


def test_a_list_says_of_a_topic_what_its_description_says(tmp_path: Path) -> None:
    """Whoever describes one works out more; what is in both is the same."""

    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        async with connected(ready) as client:
            topic_id = await client.create("a", partitions=3)
            await client.create("b", durability="os", cleanup="compact")
            await client.produce(topic_id, [b"one", b"two"], partition=1)
            listed = (await browser.get(TOPICS)).json["topics"]
            assert [topic["records"] for topic in listed] == [2, 0]
            for topic in listed:
                detail = (await browser.get(f"{TOPICS}/{topic['name']}")).json
                assert topic == {key: detail[key] for key in topic}
            shown = await scrape(server, detailed=False)
            labels = (("api", "describe_topics"), ("code", "ok"))
            assert shown["requests_total"].samples["tailrace_requests_total", labels] == 3

    browse(tmp_path, use)


def test_a_topic_is_made_changed_and_deleted(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        new = {"name": "orders", "partitions": 3, "config": {"retention": 60, "cleanup": "compact"}}
        made = await browser.send("POST", TOPICS, new)
        assert made.status == 201
        assert len(made.json["partition_list"]) == 3
        settings = {one["key"]: one["value"] for one in made.json["config"]}
        assert (settings["retention"], settings["cleanup"]) == ("1m", "compact")
        again = await browser.send("POST", TOPICS, new)
        assert (again.status, again.json["error"]["code"]) == (409, "T012")

        change = {"config": {"retention": "2h", "cleanup": None}}
        changed = await browser.send("PATCH", f"{TOPICS}/orders", change)
        assert changed.status == 200
        assert (await browser.get(f"{TOPICS}/orders")).json == changed.json
        settings = {one["key"]: one["value"] for one in changed.json["config"]}
        assert (settings["retention"], settings["cleanup"]) == ("2h", "delete")

        parts = (await browser.get(f"{TOPICS}/orders/partitions")).json
        assert parts["partitions"] == changed.json["partition_list"]
        one = await browser.get(f"{TOPICS}/orders/partitions/2")
        assert one.json == parts["partitions"][2]
        none = await browser.get(f"{TOPICS}/orders/partitions/3")
        assert (none.status, none.json["error"]["code"]) == (404, "T011")

        gone = await browser.ask("DELETE", f"{TOPICS}/orders")
        assert (gone.status, gone.body) == (204, b"")
        missing = await browser.get(f"{TOPICS}/orders")
        assert (missing.status, missing.json["error"]["code"]) == (404, "T010")

    browse(tmp_path, use)


def test_what_a_topic_may_not_be_is_refused_by_code(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        cases: list[tuple[dict[str, object], str]] = [
            ({"name": "a/b"}, "T013"),
            ({"name": "__mine"}, "T013"),
            ({"name": "a", "partitions": 0}, "T082"),
            ({"name": "a", "partitions": 10**9}, "T082"),
            ({"name": "a", "partitions": 10**12}, "T062"),
            ({"name": "a", "partitions": "3"}, "T062"),
            ({"name": "a", "replicas": 3}, "T082"),
            ({"name": "a", "config": {"colour": "red"}}, "T080"),
            ({"name": "a", "config": {"retention": "soon"}}, "T082"),
            ({"name": "a", "config": {"retention": [1]}}, "T062"),
            ({"name": "a", "config": {"max_record": "1GiB"}}, "T082"),
            ({"name": "a", "colour": "red"}, "T062"),
            ({}, "T062"),
        ]
        for document, code in cases:
            answer = await browser.send("POST", TOPICS, document)
            assert (answer.status, answer.json["error"]["code"]) == (400, code), document
        assert (await browser.get(TOPICS)).json["topics"] == []

    browse(tmp_path, use)


def test_records_below_an_offset_are_deleted(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        async with connected(ready) as client:
            topic_id = await client.create("orders")
            await client.produce(topic_id, [b"a", b"b", b"c"])
        records = f"{TOPICS}/orders/records"
        found = await browser.ask("DELETE", f"{records}?partition=0&before=2")
        assert found.json == {"partitions": [{"partition": 0, "log_start": 2}]}
        for query, status, code in (
            ("partition=0&before=4", 416, "T041"),
            ("partition=1&before=0", 404, "T011"),
            ("partition=0&before=-1", 400, "T062"),
            ("partition=0", 400, "T062"),
            ("before=1", 400, "T062"),
        ):
            answer = await browser.ask("DELETE", f"{records}?{query}")
            assert (answer.status, answer.json["error"]["code"]) == (status, code), query
        found = await browser.ask("DELETE", f"{records}?partition=0&before=end")
        assert found.json == {"partitions": [{"partition": 0, "log_start": 3}]}

    browse(tmp_path, use)


def test_an_erasure_is_asked_for_and_followed(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        async with connected(ready) as client:
            topic_id = await client.create("orders")
            await client.produce(topic_id, [b"a", b"b", b"c"])
        erasures = f"{TOPICS}/orders/erasures"
        asked = await browser.send("POST", erasures, {"keys": ["Y3VzdA=="], "records": [[0, 1]]})
        assert asked.status == 202
        receipt = asked.json
        assert (receipt["topic"], receipt["replicas"].keys()) == ("orders", {"n1"})
        followed = await browser.get(f"{erasures}/{receipt['id']}")
        assert followed.json["requested_at"] == receipt["requested_at"]
        for document, status, code in (
            ({}, 400, "T062"),
            ({"keys": ["no base64!"]}, 400, "T062"),
            ({"records": [[0, 9]]}, 416, "T041"),
            ({"records": [[7, 0]]}, 404, "T011"),
        ):
            answer = await browser.send("POST", erasures, document)
            assert (answer.status, answer.json["error"]["code"]) == (status, code), document
        unknown = await browser.get(f"{erasures}/00000000-0000-4000-8000-000000000000")
        assert (unknown.status, unknown.json["error"]["code"]) == (404, "T010")
        assert (await browser.get(f"{erasures}/1")).status == 400

    browse(tmp_path, use)
