import argparse
import asyncio
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tailrace.bench import peer_ticks, peers
from tailrace.bench.peer_catalogue import ACTIONS, peers as catalogue
from tailrace.bench.peer_job import (
    CHUNK_BYTES_MAX,
    Done,
    Job,
    Latencies,
    Peer,
    Started,
    Variant,
    chunk_of,
    dump_done,
    dump_job,
    load_done,
    load_job,
    stamp_of,
    stamped,
    verified,
)
from tailrace.bench.peer_process import found, serving
from tailrace.bench.peer_ticks import Ticks, paced
from tailrace.bench.processes import free_port

FAST, SLOW = Variant("loose", durable=False), Variant("strict", durable=True)
JOB = Job("redis", "send", "127.0.0.1:1", "s", 100, 1.5, 7, 500, 2, {"a": "b"})


def peer(*packages: str, paths: tuple[str, ...] = ("produce", "consume-each")) -> Peer:
    return Peer(
        "some", (FAST, SLOW), packages, None, lambda: "some 1",
        lambda folder, variant: nullcontext(Started("")), dict.fromkeys(paths, nothing)
    )  # fmt: skip


def nothing(_: Job) -> Done:
    return Done(0, 1.0)


def a_run(variant: Variant, *wanted: str) -> peers.Run:
    asked = peers.Asked(wanted, 100, 1.0, (500,), 0.5, None)
    return peers.Run(peer(), variant, Started(""), 0, asked)


def test_jobs_and_answers_come_back_from_their_lines() -> None:
    done = Done(3, 0.5, [1.0, 2.5])
    assert load_job(dump_job(JOB)) == JOB
    assert load_done(dump_done(done)) == done


@pytest.mark.parametrize("line", ["", "ready", "[]", '{"count": 1}'])
def test_what_is_no_answer_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="no answer"):
        load_done(line)


@pytest.mark.parametrize(("size", "count"), [(100, 1_000), (1_024, 1_000), (10_240, 102)])
def test_a_chunk_is_random_the_same_each_time_and_not_too_large(size: int, count: int) -> None:
    values = chunk_of(size)
    assert values == chunk_of(size)
    assert len(set(values)) == len(values) == count
    assert {len(value) for value in values} == {size}
    assert count * size <= CHUNK_BYTES_MAX


def test_a_consumer_has_to_see_what_was_produced_and_nothing_else() -> None:
    job = Job("redis", "consume-each", "", "s", 100, count=1_003)
    last = chunk_of(100)[2]
    assert verified(job, 1_003, last, 1.0, 3.0) == Done(1_003, 2.0)
    with pytest.raises(RuntimeError, match="1002 records were consumed where 1003"):
        verified(job, 1_002, last, 1.0, 3.0)
    with pytest.raises(RuntimeError, match="last record"):
        verified(job, 1_003, chunk_of(100)[1], 1.0, 3.0)


def test_a_value_tells_when_it_should_have_been_sent() -> None:
    value = stamped(123_456_789_012, 100)
    assert (len(value), stamp_of(value)) == (100, 123_456_789_012)


def test_latencies_leave_out_the_warm_up() -> None:
    latencies = Latencies(JOB)
    for _ in range(JOB.count):
        latencies.add(0)
    assert len(latencies.done().latencies_ms) == JOB.count - JOB.warm
    assert latencies.done().count == JOB.count


def test_ticks_are_all_there_however_late_somebody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_ticks, "LEAD_NS", 1)
    with Ticks(Job("", "", "", "", 8, count=20, rate_per_s=20_000)) as ticks:
        seen = [*ticks.due()]
        while ticks.left:
            seen += ticks.due()
    assert [after - before for before, after in pairwise(seen)] == [50_000] * 19


@pytest.mark.parametrize("suspends", [False, True])
def test_paced_sends_are_all_awaited(monkeypatch: pytest.MonkeyPatch, suspends: bool) -> None:
    monkeypatch.setattr(peer_ticks, "LEAD_NS", 1)
    seen: list[int] = []

    async def send(moments: list[int]) -> None:
        seen.extend(moments)
        if suspends:
            await asyncio.sleep(0)

    asyncio.run(paced(Job("", "", "", "", 8, count=20, rate_per_s=20_000), send))
    assert len(seen) == 20
    assert seen == sorted(seen)


def test_every_peer_can_produce_and_is_known_to_its_client_process() -> None:
    for name, one in catalogue().items():
        assert ACTIONS[name].keys() == one.actions.keys()
        assert "produce" in one.actions
        assert ("send" in one.actions) == ("receive" in one.actions)
        assert [variant.durable for variant in one.variants] == sorted(
            bool(variant.durable) for variant in one.variants
        ), "the fastest first"


def test_a_given_kafka_is_neither_started_nor_spoken_to_by_an_old_client(tmp_path: Path) -> None:
    kafka = catalogue("127.0.0.1:9092")["kafka"]
    assert kafka.python is None
    for variant, options in zip(kafka.variants, ({}, {"flush.messages": "1"}), strict=True):
        with kafka.start(tmp_path, variant) as started:
            assert started == Started("127.0.0.1:9092", options)


def test_consumers_are_told_of_once_from_the_fastest_setting() -> None:
    wanted = ("produce", "consume-batches", "consume-each")
    assert peers.consume_paths(a_run(FAST, *wanted)) == ("consume-each",)
    assert peers.consume_paths(a_run(SLOW, *wanted)) == ()
    assert peers.consume_paths(a_run(FAST, "produce")) == ()


def test_a_server_that_compiles_works_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[tuple[str, float, int]] = []

    def act(run: peers.Run, job: Job, role: str = "") -> Done:
        done.append((job.action, job.seconds, job.count))
        return Done(7, 1.0)

    monkeypatch.setattr(peers, "act", act)
    monkeypatch.setattr("tailrace.bench.peers.os.sync", lambda: None)
    asked = peers.Asked(("produce",), 100, 0.001, (), 0.5, tmp_path)
    compiled = replace(peer(paths=("produce", "consume-batches")), variants=(FAST,), warm_s=0.002)
    peers.run_round(compiled, 0, asked)
    assert done == [
        *(("produce", 0.002, 0), ("consume-batches", 0.0, 7)),
        *(("produce", 0.001, 0), ("consume-batches", 0.0, 7)),
    ]


def test_a_setting_that_no_latency_is_told_of_is_not_started(tmp_path: Path) -> None:
    started: list[Variant] = []

    def start(folder: Path, variant: Variant) -> AbstractContextManager[Started]:
        started.append(variant)
        return nullcontext(Started(""))

    asked = peers.Asked(("ack-latency-p50",), 100, 0.001, (), 0.5, tmp_path)
    peers.run_round(replace(peer(), start=start), 0, asked)
    assert started == [SLOW]


def test_a_missing_client_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "python_of", lambda _: sys.executable)
    with pytest.raises(FileNotFoundError, match="no such-a-client: `make bench-peers`"):
        peers.present(peer("such-a-client"))
    assert peers.present(peer("anyio")).startswith("some 1; anyio ")


def test_a_missing_server_is_named_with_what_to_install() -> None:
    with pytest.raises(FileNotFoundError, match="no such-a-server: install it"):
        found("such-a-server", "install it")


def test_an_unknown_name_is_refused() -> None:
    parse = peers.names(("redis", "nats"))
    assert parse("nats,redis") == ["nats", "redis"]
    with pytest.raises(argparse.ArgumentTypeError, match="reddit"):
        parse("redis,reddit")


def test_a_server_that_ends_at_once_is_told_of_with_its_last_words(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo no room >&2; exit 1"]
    with pytest.raises(RuntimeError, match="some does not listen: no room"):
        with serving(tmp_path, "some", command, free_port()):
            raise AssertionError("it listens")


@pytest.mark.slow
def test_nothing_of_a_server_is_left(tmp_path: Path) -> None:
    port = free_port()
    listen = f"import socket; socket.create_server(('127.0.0.1', {port})).accept(); input()"
    command = ["sh", "-c", f'sleep 1000 & echo $!; "{sys.executable}" -c "{listen}"; wait']
    with serving(tmp_path, "some", command, port):
        child = Path(f"/proc/{(tmp_path / 'some.log').read_text().split()[0]}")
        assert child.exists()
    assert not child.exists()
