"""Topics over HTTP."""

from pathlib import Path

from tailrace.broker.server import Ready, Server
from tests.broker.browsing import Browser, browse
from tests.broker.harness import connected


def test_topics_are_listed_in_parts(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        assert (await browser.get("/api/v1/topics")).json == {"topics": [], "next": None}
        async with connected(ready) as client:
            for name in ("b", "c", "a"):
                topic_id = await client.create(name, partitions=2)
            await client.produce(topic_id, [b"one", b"two"])
        answer = await browser.get("/api/v1/topics")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert [topic["name"] for topic in answer.json["topics"]] == ["a", "b", "c"]
        first = answer.json["topics"][0]
        assert (first["partitions"], first["records"], first["internal"]) == (2, 2, False)
        seen: list[str] = []
        after = ""
        while True:
            part = (await browser.get(f"/api/v1/topics?limit=2{after}")).json
            seen += [topic["name"] for topic in part["topics"]]
            if part["next"] is None:
                break
            after = f"&after={part['next']}"
        assert seen == ["a", "b", "c"]

    browse(tmp_path, use)
