"""``tailrace explain``: what is asked for, and how the answer is shown."""

import shlex

import pytest

from tailrace.client.cli_explain_target import Target, parse_target
from tailrace.protocol import texts_explain
from tailrace.testing import Broker
from tests.cli.conftest import Cli, Result


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("orders", Target("orders")),
        ("orders:", Target("orders")),
        ("orders:2", Target("orders", 2)),
        ("orders:2:", Target("orders", 2)),
        ("orders:2:881", Target("orders", 2, 881)),
        ("T041:", Target("T041")),
        ("T041:0", Target("T041", 0)),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("",),
        (":",),
        (":1",),
        ("orders:x",),
        ("orders:1:2:3",),
        ("orders::",),
        ("orders:-1",),
        ("orders:2147483648",),
        ("orders:0:1234567890123456789",),
        ("T041", "-g", "billing"),
        ("T999",),
    ],
)
def test_what_is_no_target_is_a_usage_error(offline: Cli, arguments: tuple[str, ...]) -> None:
    result = offline("explain", *arguments)
    assert (result.code, result.out) == (2, b"")
    assert result.err.startswith("error: T082: tailrace explain: ")


def test_a_topic_named_like_a_code_ends_in_a_colon(cli: Cli, broker: Broker) -> None:
    broker.create_topic("T041")
    assert cli("explain", "t041").out.startswith(b"T041  OffsetOutOfRange")
    assert cli("explain", "T041:").out.startswith(b"T041  topic  ok\n")


def test_the_text_has_summary_facts_and_what_comes_next(cli: Cli, broker: Broker) -> None:
    topic = broker.name("orders")
    broker.seed(topic, [b"x"] * 3)
    result = cli("explain", f"{topic}:0:1")
    head, _, summary, _, *facts, _, following = result.out.decode().splitlines()
    assert head == f"{topic}[0]@1  record  readable"
    assert summary == f"The record is there and can be read: {topic}[0] serves offsets 0 to 2."
    assert [line.split()[:2] for line in facts[:4]] == [
        *(["offset", "1"], ["log_start", "0"], ["high_watermark", "3"], ["log_end", "3"])
    ]
    assert following == f"Next  tailrace cat {topic}:0:1"


def test_the_document_of_each_kind(cli: Cli, broker: Broker) -> None:
    topic, group = broker.name("orders"), broker.name("billing")
    broker.seed(topic, [b"x"] * 3)
    with broker.client() as client, client.consumer(topic, group=group, commit="manual") as one:
        next(iter(one))
        one.commit()
    for arguments, kind, verdict in (
        ((topic,), "topic", "ok"),
        ((f"{topic}:0",), "partition", "ok"),
        ((f"{topic}:0:3",), "record", "beyond_end"),
        ((f"{topic}:0:0", "-g", group), "record", "committed"),
        ((f"{topic}:0:2", "-g", group), "record", "waiting"),
        ((topic, "-g", group), "topic", "ok"),
        (("-g", group), "group", "ok"),
    ):
        document = cli("-O", "json", "explain", *arguments).json()
        assert list(document) == ["target", "kind", "verdict", "summary", "facts", "next"]
        assert (document["kind"], document["verdict"]) == (kind, verdict), arguments
        assert all(list(fact) == ["name", "value"] for fact in document["facts"])


@pytest.mark.parametrize(("topic", "group"), [("orders.of.x", "bill"), ("-orders", "-g it's")])
def test_commands_run_as_they_are_shown(cli: Cli, broker: Broker, topic: str, group: str) -> None:
    """Whatever the names are."""
    broker.seed(topic, [b"a", b"b"])
    with broker.client() as client, client.consumer(topic, group=group, commit="manual") as one:
        next(iter(one))
        one.commit()
    for command in (
        texts_explain.cat(topic, 0, 1),
        texts_explain.read_on(topic, 0, 1),
        texts_explain.last_record(topic, 0),
    ):
        result = run_command(cli, command)
        assert (result.code, result.out) == (0, b"b\n"), command
    for command in (
        texts_explain.reset(group, topic, 0, 0),
        texts_explain.reset(group, topic, 0, "start"),
        texts_explain.describe_group(group),
        texts_explain.explain_group(group),
        texts_explain.explain(topic),
        texts_explain.explain(f"{topic}:0"),
        texts_explain.explain(f"{topic}:0:1", group),
        texts_explain.TOPICS,
    ):
        assert run_command(cli, command).code == 0, command
    for command in (texts_explain.HEALTH, texts_explain.DOCTOR):
        assert run_command(cli, command).code in (0, 6), command


def run_command(cli: Cli, command: str) -> Result:
    name, *arguments = shlex.split(command)
    assert name == "tailrace"
    if arguments[:2] == ["group", "reset"]:
        arguments.insert(2, "--yes")
    return cli(*arguments)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("nosuch",), "T010"), (("{topic}:7",), "T011"), (("{topic}:0:1", "-g", "nobody"), "T043")],
)
def test_what_is_not_there_is_exit_4(
    cli: Cli, broker: Broker, arguments: tuple[str, ...], code: str
) -> None:
    topic = broker.name("orders")
    broker.create_topic(topic)
    result = cli("explain", *(part.format(topic=topic) for part in arguments))
    assert (result.code, result.err[:11]) == (4, f"error: {code}")
