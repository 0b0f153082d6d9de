"""``tailrace bench``: its document, and that it leaves nothing behind."""

import threading
import time

import pytest

from tailrace.bench.workload import make_values, percentiles
from tailrace.testing import Broker
from tests.cli.conftest import Cli


@pytest.mark.parametrize("mode", ["produce", "consume", "e2e"])
@pytest.mark.parametrize("acks", ["all", "1", "0"])
def test_document_of_every_mode(cli: Cli, mode: str, acks: str) -> None:
    arguments = ("-n", "300", "-s", "50B", "--batch", "100", "--producers", "2")
    result = cli("bench", mode, *arguments, "--partitions", "2", "--acks", acks, "-O", "json")
    assert (result.code, result.err) == (0, "")
    document = result.json()
    assert tuple(document) == (
        *("schema", "mode", "records", "size_bytes", "elapsed_seconds", "records_per_s"),
        *("bytes_per_s", "latency_ms", "errors", "params", "env"),
    )
    assert (document["schema"], document["mode"]) == ("tailrace.bench/1", mode)
    assert (document["records"], document["size_bytes"], document["errors"]) == (300, 50, 0)
    assert list(document["latency_ms"]) == ["p50", "p90", "p99", "p999", "max"]
    assert list(document["env"]) == ["python", "tailrace", "platform", "cpus"]
    assert document["params"]["producers"] == 2


def test_topics_are_deleted_unless_kept(cli: Cli, broker: Broker) -> None:
    def names() -> set[str]:
        return {info["name"] for info in cli("topic", "list", "-O", "json").json()["topics"]}

    before = names()
    assert cli("bench", "produce", "-n", "10").code == 0
    assert names() == before
    topic = broker.name("kept")
    assert cli("bench", "produce", "-n", "10", "--topic", topic, "--keep").code == 0
    assert names() == before | {topic}
    assert len(broker.records(topic)) == 10


def test_table_is_for_people(cli: Cli) -> None:
    text = cli("bench", "produce", "-n", "1k").out.decode().splitlines()
    assert text[0].startswith("produce  ")
    assert text[0].endswith(" (1,000 x 100 B)")
    assert text[1].split() == ["p50", "p90", "p99", "p999", "max"]


@pytest.mark.parametrize(
    "arguments", [("-n", "0"), ("-n", "1.5k"), ("-s", "0B"), ("-s", "many"), ("--acks", "2")]
)
def test_what_cannot_be_measured_is_refused(cli: Cli, arguments: tuple[str, ...]) -> None:
    assert cli("bench", "produce", *arguments).code == 2


def test_an_existing_topic_is_not_touched(cli: Cli, broker: Broker) -> None:
    topic = broker.name("mine")
    broker.seed(topic, [b"precious"])
    result = cli("bench", "produce", "-n", "10", "--topic", topic)
    assert result.code == 1
    assert "T012" in result.err
    assert [record.value for record in broker.records(topic)] == [b"precious"]


def test_nobody_there(offline: Cli) -> None:
    assert offline("bench", "e2e", "-n", "10").code == 3


def test_percentiles_and_values() -> None:
    assert percentiles([float(n) for n in range(1, 1001)])["p99"] == 991.0
    assert percentiles([])["max"] == 0.0
    values = make_values(2_500, 10)
    assert len(values) == 2_500
    assert {len(value) for value in values} == {10}
    assert values == make_values(2_500, 10)


@pytest.mark.parametrize("mode", ["produce", "e2e"])
def test_a_broker_that_takes_no_more_ends_it(
    offline: Cli, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    with Broker() as own, own.faults.error("T031", "produce"):
        monkeypatch.setenv("TAILRACE_URL", own.url)
        result = offline("bench", mode, "-n", "10", "--timeout", "1s")
    assert result.code == 5
    assert result.err.startswith("error: T034: the bench got no further in 1 s: T031: ")


def test_a_broker_that_goes_away_ends_it(offline: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with Broker() as own, own.faults.error("T033", "produce"):
        monkeypatch.setenv("TAILRACE_URL", own.url)
        timer = threading.Timer(0.1, own.stop)
        timer.start()
        result = offline("bench", "produce", "-n", "1k", "--timeout", "0.3s")
        timer.join()
    assert (result.code, result.out) == (5, b"")
    assert result.err.startswith("error: T034: the bench got no further in 0.3 s: ")
    assert time.monotonic() - began < 5
