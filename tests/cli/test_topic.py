"""``tailrace topic``: what is created, shown, changed and deleted."""

import io
import re

import pytest

from tailrace.testing import Broker
from tests.cli.conftest import Cli


def test_create_says_what_it_made(cli: Cli, broker: Broker) -> None:
    topic = broker.name("made")
    result = cli("topic", "create", topic, "-p", "3", "--set", "retention=2d")
    assert (result.code, result.out) == (0, b"")
    assert result.err == f"created topic {topic} (3 partitions)\n"
    detail = cli("topic", "describe", topic, "-O", "json").json()
    assert detail["partitions"] == 3
    retention = next(entry for entry in detail["config"] if entry["key"] == "retention")
    assert (retention["value"], retention["source"]) == ("2d", "topic")


def test_create_again_is_refused_unless_asked_not_to(cli: Cli, broker: Broker) -> None:
    topic = broker.name("twice")
    assert cli("topic", "create", topic).code == 0
    again = cli("topic", "create", topic)
    assert again.code == 1
    assert again.err.startswith(f"error: T012: topic '{topic}' exists")
    assert cli("topic", "create", topic, "--if-not-exists").code == 0


def test_create_with_json_prints_the_topic(cli: Cli, broker: Broker) -> None:
    topic = broker.name("json")
    detail = cli("-O", "json", "topic", "create", topic).json()
    assert detail["name"] == topic
    assert [p["status"] for p in detail["partition_list"]] == ["ok"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--set", "colour=red"), "T080"),
        (("--set", "retention"), "T082"),
        (("--set", "retention=soon"), "T082"),
        (("--set", "retention=7"), "T082"),
        (("--set", "segment_size=1000000"), "T082"),
        (("--set", "retention=1h", "--set", "retention=2h"), "T082"),
        (("-p", "0"), "T082"),
        (("--set", "min_isr=2"), "T081"),
    ],
)
def test_wrong_settings_are_exit_2(cli: Cli, arguments: tuple[str, ...], code: str) -> None:
    result = cli("topic", "create", "never", *arguments)
    assert result.code == 2
    assert result.err.startswith(f"error: {code}: ")


def test_list_and_its_short_name(cli: Cli, broker: Broker) -> None:
    topic = broker.name("listed")
    broker.seed(topic, [b"12345"])
    result = cli("topic", "list")
    head, *rows = result.out.decode().splitlines()
    assert head.split() == (
        ["TOPIC", "PARTITIONS", "REPLICAS", "RECORDS", "SIZE", "CLEANUP", "DURABILITY"]
    )
    row = next(row for row in rows if row.startswith(topic))
    assert re.fullmatch(rf"{topic} +1 +1 +1 +\d+ B +delete +fsync", row)
    assert cli("topic", "ls").out == result.out
    info = next(i for i in cli("topic", "list", "-O", "ndjson").lines() if i["name"] == topic)
    assert info == next(
        i for i in cli("topic", "list", "-O", "json").json()["topics"] if i["name"] == topic
    )
    assert (info["records"], info["internal"]) == (1, False)


def test_describe_is_a_line_and_a_row_a_partition(cli: Cli, broker: Broker) -> None:
    topic = broker.name("described")
    broker.create_topic(topic, partitions=2)
    cli("produce", topic, "-p", "1", stdin=b"x\n" * 1200)
    lines = cli("topic", "describe", topic).out.decode().splitlines()
    assert re.fullmatch(
        rf"{topic}  partitions 2  replicas 1  min_isr 1  retention 7d  cleanup delete"
        r"  durability fsync  [\d.,]+ (B|KiB)  1,200 records",
        lines[0],
    )
    assert lines[1].split() == (
        ["PART", "LEADER", "ISR", "START", "END", "SIZE", "LAST", "APPEND", "STATUS"]
    )
    assert re.fullmatch(r"0 +n1 +n1 +0 +0 +0 B +- +ok", lines[2])
    assert re.fullmatch(r"1 +n1 +n1 +0 +1,200 +.* (B|KiB) +\d+\.\d s ago +ok", lines[3])


def test_describe_shows_what_is_in_force(cli: Cli, broker: Broker) -> None:
    def head(*pairs: str) -> str:
        topic = broker.name("kept")
        given = [part for pair in pairs for part in ("--set", pair)]
        assert cli("topic", "create", topic, *given).code == 0
        broker.seed(topic, [b"x"], keys=[b"k"])
        return cli("topic", "describe", topic).out.decode().splitlines()[0]

    assert "min_isr 1  cleanup compact  durability fsync" in head("cleanup=compact")
    ring = head("on_full=drop_oldest", "retention_size=1GiB")
    assert "  retention 7d  retention_size 1GiB  on_full drop_oldest  cleanup delete  " in ring
    assert ring.endswith("  1 record")


def test_describe_says_how_far_a_compacted_topic_is_and_why_no_further(
    cli: Cli, broker: Broker
) -> None:
    topic = broker.name("compacted")
    broker.create_topic(topic, cleanup="compact")
    broker.advance()  # the cleaner looks at it
    lines = cli("topic", "describe", topic).out.decode().splitlines()
    assert lines[3].split() == (
        ["PART", "COMPACTION", "CLEAN", "TO", "DIRTY", "RATIO", "LAST", "RUN", "WHY"]
    )
    assert re.fullmatch(r"0 +idle +0 +0 B +0% +- +no segment is closed yet", lines[4])
    detail = cli("topic", "describe", topic, "-O", "json").json()
    assert detail["partition_list"][0]["compaction"] == {
        "state": "idle",
        "clean_offset": 0,
        "dirty_bytes": 0,
        "dirty_ratio": 0.0,
        "progress": 0.0,
        "reason": "no segment is closed yet",
        "last_run_at": None,
        "last_error": None,
    }


def test_alter_sets_and_unsets(cli: Cli, broker: Broker) -> None:
    topic = broker.name("altered")
    broker.create_topic(topic)
    result = cli("topic", "alter", topic, "--set", "retention=1h", "--set", "max_record=2MiB")
    assert result.code == 0
    assert result.err == f"altered topic {topic}: max_record=2MiB retention=1h\n"
    result = cli("topic", "alter", topic, "--unset", "retention", "-O", "json")
    config = {entry["key"]: entry["value"] for entry in result.json()["config"]}
    assert (config["retention"], config["max_record"]) == ("7d", "2MiB")


@pytest.mark.parametrize(
    "arguments", [(), ("--set", "retention=1h", "--unset", "retention"), ("--set", "=1")]
)
def test_alter_needs_something_to_do(cli: Cli, arguments: tuple[str, ...]) -> None:
    assert cli("topic", "alter", "never", *arguments).code == 2


def test_delete_asks_only_on_a_terminal(
    cli: Cli, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = broker.name("kept")
    broker.create_topic(topic)
    refused = cli("topic", "delete", topic)
    assert refused.code == 2
    assert "add --yes" in refused.err
    assert cli("topic", "describe", topic).code == 0


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("y\n", 0)])
def test_answer_decides(
    cli: Cli, broker: Broker, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    topic = broker.name("asked")
    broker.create_topic(topic)
    monkeypatch.setattr("tailrace.client.cli_run.on_terminal", lambda: True)
    monkeypatch.setattr(
        "click.termui.visible_prompt_func", lambda text: io.StringIO(answer).readline()
    )
    result = cli("topic", "delete", topic)
    assert result.code == code
    assert cli("topic", "describe", topic).code == (4 if code == 0 else 0)


def test_delete_of_several_tells_which_went(cli: Cli, broker: Broker) -> None:
    one, two = broker.name("one"), broker.name("two")
    for topic in (one, two):
        broker.create_topic(topic)
    result = cli("topic", "delete", one, "missing", two, "--yes")
    assert result.code == 4
    assert f"deleted 1 topic: {one}" in result.err
    assert "error: T010: topic 'missing' does not exist" in result.err
    result = cli("topic", "delete", two, "--yes", "-O", "json")
    assert result.json() == {"deleted": [two]}


@pytest.mark.parametrize("name", ["purge", "export", "import"])
def test_later_names_are_refused(cli: Cli, name: str) -> None:
    result = cli("topic", name, "x")
    assert result.code == 2
    assert result.err.startswith(f"error: T086: 'topic {name}' comes with a later release.")
