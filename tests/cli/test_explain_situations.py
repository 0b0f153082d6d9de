"""Ten situations are planted in a real broker: what is asked or logged names the cause and a
command, and the command is run."""

import asyncio
import logging
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tailrace
from tailrace.testing import Broker
from tests.cli.conftest import Cli, Result

TRIES = 200  # of what takes a moment; each asks the broker


@dataclass(frozen=True)
class Asked:
    """An explanation as a document."""

    document: dict[str, Any]
    run: Cli

    @property
    def verdict(self) -> str:
        return str(self.document["verdict"])

    @property
    def summary(self) -> str:
        return str(self.document["summary"])

    @property
    def facts(self) -> dict[str, Any]:
        return {fact["name"]: fact["value"] for fact in self.document["facts"]}

    def follow(self) -> Result:
        """Do what it says comes next."""
        return follow(self.run, str(self.document["next"]))


def follow(cli: Cli, command: str) -> Result:
    """Run a command that was read somewhere; the answer to "Really?" is yes."""
    name, *arguments = shlex.split(command)
    assert name == "tailrace"
    if arguments[:2] == ["group", "reset"]:
        arguments.append("--yes")
    return cli(*arguments)


@pytest.fixture
def explain(cli: Cli) -> Callable[..., Asked]:
    def ask(*target: str) -> Asked:
        result = cli("-O", "json", "explain", *target)
        assert (result.code, result.err) == (0, "")
        return Asked(result.json(), cli)

    return ask


def until(look: Callable[[], Asked], there: Callable[[Asked], bool]) -> Asked:
    """Ask until that is so."""
    found = look()
    for _ in range(TRIES):
        if there(found):
            return found
        found = look()
    raise AssertionError(f"it never came: {found.document}")


def is_(verdict: str) -> Callable[[Asked], bool]:
    return lambda found: found.verdict == verdict


# ── records ──────────────────────────────────────────────────────────────────────────────────


def test_expired_offset(explain: Callable[..., Asked], broker: Broker) -> None:
    topic = broker.name("expired")
    broker.create_topic(topic, retention="1h")
    broker.seed(topic, [b"old"] * 5)
    broker.advance(hours=3)
    broker.seed(topic, [b"new"])
    found = until(lambda: explain(f"{topic}:0:2"), is_("expired"))
    assert "starts at 5" in found.summary
    assert "Retention (1h) removed it" in found.summary
    assert found.facts["log_start"] == 5
    assert found.follow().out == b"new\n"


def test_deleted_offset_that_a_group_stands_at(
    explain: Callable[..., Asked], broker: Broker, cli: Cli
) -> None:
    topic, group = broker.name("deleted"), broker.name("late")
    broker.seed(topic, [b"x"] * 10)
    read(broker, topic, group, 2)
    assert cli("topic", "delete-records", topic, "-p", "0", "--before", "6", "--yes").code == 0
    found = explain(f"{topic}:0:3", "-g", group)
    assert (found.verdict, found.facts["log_start_moved_by"]) == ("expired", "deleted")
    assert "delete-records moved the start past it" in found.summary
    alone = explain("-g", group)
    assert "(T041): it is at 2, but the log starts at 6" in alone.summary
    assert alone.document["next"] == found.document["next"]
    assert found.follow().code == 0
    assert explain("-g", group).document["next"] != found.document["next"]


def test_compacted_record(explain: Callable[..., Asked], broker: Broker) -> None:
    topic = broker.name("compacted")
    broker.create_topic(
        topic, cleanup="compact", compaction_lag_max="1h", compaction_dirty_ratio="0"
    )
    broker.seed(topic, [b"one", b"two", b"three"], keys=[b"k", b"k", b"k"])

    def look() -> Asked:
        broker.advance(hours=2)
        return explain(f"{topic}:0:0")

    found = until(look, is_("compacted"))
    assert "a later one has its key" in found.summary
    assert "cannot be told" in found.summary
    assert found.facts["compacted_below"] == 3
    assert found.follow().out == b"three\n"
    assert explain(f"{topic}:0:2").verdict == "readable"


def test_erased_record(explain: Callable[..., Asked], broker: Broker) -> None:
    topic = broker.name("erased")
    broker.seed(topic, [b"a", b"b", b"c", b"d"], keys=[b"1", b"2", b"3", b"4"])
    with broker.client() as client:
        by_place = client.admin.erase(topic, records=[(0, 1)])
        by_key = client.admin.erase(topic, keys=[b"3"])
    found = explain(f"{topic}:0:1")
    assert found.verdict == "erased"
    assert f"by erasure {by_place.id}" in found.summary
    assert found.follow().out == b"d\n"
    found = explain(f"{topic}:0:2")
    assert found.verdict == "erased"
    assert by_key.id in found.summary
    assert "receipts keep neither keys nor positions" in found.summary


def test_uncommitted_tail(explain: Callable[..., Asked], broker: Broker, cli: Cli) -> None:
    topic = broker.name("tail")
    broker.create_topic(topic)
    with (
        broker.client() as client,
        client.producer() as producer,
        broker.faults.slow_disk(2.0),
    ):
        delivery = producer.enqueue_nowait(topic, b"x")
        found = until(lambda: explain(f"{topic}:0:0"), is_("not_committed"))
        whole = explain(f"{topic}:0")
        delivery.result(timeout=30)
    assert "a sync has been under way for" in found.summary
    assert "1 batch of producers waits for it" in found.summary
    assert (found.facts["high_watermark"], found.facts["log_end"]) == (0, 1)
    assert whole.verdict == "ok"
    assert explain(f"{topic}:0:0").verdict == "readable"
    assert found.document["next"] == "tailrace doctor"
    names = [check["name"] for check in cli("-O", "json", "doctor").json()["checks"]]
    assert "fsync_ms" in names


def test_quarantined_range(tmp_path: Path, offline: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with Broker(data_dir=tmp_path / "data") as broker:
        monkeypatch.setenv("TAILRACE_URL", broker.url)
        broker.create_topic("orders")
        with broker.client() as client, client.producer(compression="none") as producer:
            for at in range(0, 60, 20):
                values = [b"record %04d" % number for number in range(at, at + 20)]
                producer.send_many("orders", values, partition=0)
        read(broker, "orders", "billing", 20)
        broker.stop()
        path = flip_bit(tmp_path / "data", b"record 0030")
        broker.start()
        document = offline("-O", "json", "explain", "orders:0:30", "-g", "billing").json()
        found = Asked(document, offline)
        assert (found.verdict, found.facts["damaged_file"]) == ("damaged", str(path))
        assert "offsets 20 to 39" in found.summary
        assert "T035" in found.summary
        assert f"{path} at byte {found.facts['damaged_position']:,}" in found.summary
        assert offline("segment", "verify", str(path)).code == 6
        topic = Asked(offline("-O", "json", "explain", "orders").json(), offline)
        assert "Damaged and not served (T035): offsets 20-39" in topic.summary
        assert topic.follow().code == 0
        group = Asked(offline("-O", "json", "explain", "-g", "billing").json(), offline)
        assert "orders[0]@20, the next one, is damaged" in group.summary
        assert group.follow().code == 0
        assert found.follow().code == 0
        assert broker.committed("billing") == {tailrace.TopicPartition("orders", 0): 40}


# ── groups ───────────────────────────────────────────────────────────────────────────────────


def test_idle_member(explain: Callable[..., Asked], broker: Broker) -> None:
    topic, group = broker.name("idle"), broker.name("app")
    broker.seed(topic, [b"x"])
    with broker.client() as client, client.consumer(topic, group=group):
        with client.consumer(topic, group=group):
            found = until(lambda: explain("-g", group), lambda it: "idle_members" in it.facts)
            assert "is idle (T071): 1 partition for 2 members. Stop a member" in found.summary
            assert b"idle" in found.follow().out
        found = until(lambda: explain("-g", group), lambda it: "idle_members" not in it.facts)
        assert "T071" not in found.summary


def test_stalled_handler(explain: Callable[..., Asked], broker: Broker) -> None:
    topic, group = broker.name("stalled"), broker.name("slow")
    broker.seed(topic, [b"r0", b"r1", b"r2", b"r3"])
    with (
        broker.client() as client,
        client.consumer(topic, group=group, commit="manual") as consumer,
    ):
        records = iter(consumer)
        next(records)
        consumer.commit()
        next(records)  # and here the handler sits
        assert explain("-g", group).verdict == "ok"
        broker.advance(minutes=2)
        found = until(lambda: explain("-g", group), is_("stalled"))
        (member,) = client.admin.describe_group(group).member_list
        assert f"stalled in {topic}[0] at offset 1: for 120 s" in found.summary
        assert f"{member.client_id} at {member.host} has it" in found.summary
        assert "T050" in found.summary
        assert found.facts["stalled"] == [f"{topic}[0]@1"]
        assert found.follow().out == b"r1\n"
        waiting = explain(f"{topic}:0:3", "-g", group)
        assert (waiting.verdict, waiting.facts["group_verdict"]) == ("waiting", "stalled")
        assert "is at 1: 2 offsets come first" in waiting.summary
        assert waiting.follow().code == 0
        assert explain(f"{topic}:0:0", "-g", group).verdict == "committed"


def test_blocked_event_loop(cli: Cli, broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    topic, group = broker.name("blocked"), broker.name("app")
    broker.seed(topic, [b"x"])

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async for _ in client.consumer(topic, group=group):
                time.sleep(1.5)  # noqa: ASYNC251 - the fault
                return

    with caplog.at_level(logging.WARNING, "tailrace"):
        asyncio.run(main())
    lines = [line.getMessage() for line in caplog.records if getattr(line, "code", "") == "T050"]
    assert re.search(r"blocked the event loop .*test_explain_situations\.py:\d+ main\(\)", lines[0])
    assert "anyio.to_thread.run_sync" in lines[0]
    assert b"to_thread" in cli("explain", "T050").out


# ── the broker ───────────────────────────────────────────────────────────────────────────────


def test_read_only_disk(explain: Callable[..., Asked], broker: Broker, cli: Cli) -> None:
    topic = broker.name("full")
    broker.seed(topic, [b"x"])
    with broker.faults.disk_full():
        found = explain(f"{topic}:0")
        assert (found.verdict, found.facts["writes_refused"]) == ("ok", True)
        assert "Producers get T031: broker n1 is read-only, 0 B free, min_free" in found.summary
        command = re.search(r"tailrace topic alter NAME --set retention=1d", found.summary)
        assert command is not None
        assert topic.encode() in found.follow().out
        assert follow(cli, command[0].replace("NAME", topic)).code == 0
        assert "T031" in explain(topic).summary
    assert "T031" not in explain(f"{topic}:0").summary


def test_topic_typo(cli: Cli, broker: Broker) -> None:
    topic = broker.name("typo")
    broker.create_topic(topic)
    result = cli("-O", "json", "explain", topic[:-1])
    assert (result.code, result.error()["code"]) == (4, "T010")
    (similar,) = result.error()["details"]["similar"]
    assert cli("explain", similar).code == 0
    create = re.search(r"tailrace topic create \S+", result.error()["hint"])
    assert create is not None
    assert follow(cli, create[0]).code == 0
    assert cli("explain", topic[:-1]).code == 0


# ── how ──────────────────────────────────────────────────────────────────────────────────────


def read(broker: Broker, topic: str, group: str, count: int) -> None:
    """Let the group read so many records, commit, and leave."""
    with broker.client() as client, client.consumer(topic, group=group, commit="manual") as reader:
        for number, _ in enumerate(reader, 1):
            if number == count:
                reader.commit()
                return


def flip_bit(data_dir: Path, value: bytes) -> Path:
    """Flip one bit of that record on the disk; the file it is in."""
    for path in sorted(data_dir.glob("topics/*/*.log")):
        at = path.read_bytes().find(value)
        if at >= 0:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([value[0] ^ 1]))
            return path
    raise AssertionError(f"{value!r} is in no segment")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Its own: its clock is moved."""
    with Broker(data_dir=tmp_path_factory.mktemp("broker"), http=True) as found:
        yield found
