"""Consumer groups over HTTP."""

from dataclasses import is_dataclass
from pathlib import Path

import msgspec

from tailrace.broker.http_table import ENDPOINTS
from tailrace.broker.server import Ready, Server
from tailrace.protocol.messages import NO_EPOCH, CommitPartition
from tailrace.protocol.shapes import GroupDetail
from tests.broker import members
from tests.broker.browsing import Browser, browse
from tests.broker.harness import Client, connected

GROUPS = "/api/v1/groups"


async def commit(client: Client, group: str, topic_id: bytes, offset: int) -> None:
    partition = CommitPartition(topic_id, 0, offset, 1, -1, -1, NO_EPOCH, "")
    assert (await members.commit(client, group, partition)).error is None


def test_groups_are_listed_and_described(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        assert (await browser.get(GROUPS)).json == {"groups": [], "next": None}
        async with connected(ready) as client:
            topic_id = await client.create("orders")
            await client.produce(topic_id, [b"a", b"b", b"c"])
            for name in ("billing", "a/b c"):
                await commit(client, name, topic_id, 1)
        found = (await browser.get(GROUPS)).json
        assert [group["name"] for group in found["groups"]] == ["a/b c", "billing"]
        assert (await browser.get(f"{GROUPS}?limit=1")).json["next"] == "a/b c"
        detail = (await browser.get(f"{GROUPS}/a%2Fb%20c")).json
        assert (detail["name"], detail["state"]) == ("a/b c", "empty")
        assert detail["partition_list"][0]["committed"] == 1
        lag = (await browser.get(f"{GROUPS}/billing/lag")).json
        assert (lag["group"], lag["lag_records"]) == ("billing", 2)
        for path in (f"{GROUPS}/nobody", f"{GROUPS}/nobody/lag"):
            missing = await browser.get(path)
            assert (missing.status, missing.json["error"]["code"]) == (404, "T043")
        assert (await browser.get(f"{GROUPS}/%07")).json["error"]["code"] == "T013"

    browse(tmp_path, use)


def test_offsets_are_moved_all_or_none(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        async with connected(ready) as client:
            topic_id = await client.create("orders")
            await client.produce(topic_id, [b"a", b"b", b"c"])
            await commit(client, "billing", topic_id, 1)
        offsets = f"{GROUPS}/billing/offsets"
        target = {"topic": "orders", "partition": 0, "offset": 3}
        expected = {"topic": "orders", "partition": 0, "before": 1, "after": 3, "records": -2}
        tried = await browser.send("PUT", offsets, {"offsets": [target], "dry_run": True})
        assert tried.json == {"changes": [expected], "applied": False}
        done = await browser.send("PUT", offsets, {"offsets": [target]})
        assert done.json == {"changes": [expected], "applied": True}
        lag = (await browser.get(f"{GROUPS}/billing/lag")).json
        assert lag["lag_records"] == 0
        for change, status, code in (
            ({"offset": 4}, 416, "T041"),
            ({"partition": 9}, 404, "T011"),
            ({"topic": "nothing"}, 404, "T010"),
            ({"offset": -1}, 400, "T062"),
        ):
            answer = await browser.send("PUT", offsets, {"offsets": [{**target, **change}]})
            assert (answer.status, answer.json["error"]["code"]) == (status, code), change
        twice = await browser.send("PUT", offsets, {"offsets": [target, target]})
        assert twice.error == "T062: a partition is named twice in one request"

        assert (await browser.ask("DELETE", f"{GROUPS}/billing")).status == 204
        gone = await browser.ask("DELETE", f"{GROUPS}/billing")
        assert (gone.status, gone.json["error"]["code"]) == (404, "T043")

    browse(tmp_path, use)


def test_a_group_is_the_one_shape_that_is_no_json_by_itself() -> None:
    kinds = {kind for one in ENDPOINTS for kind in one.answers.values() if is_dataclass(kind)}
    with_tuples = [
        kind for kind in kinds if "TopicPartition" in msgspec.json.schema_components([kind])[1]
    ]
    assert with_tuples == [GroupDetail]
