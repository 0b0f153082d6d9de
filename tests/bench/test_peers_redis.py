"""A real redis-server, driven as the bench does it; CI installs it."""

import os
import subprocess
import sys

import pytest

from tailrace.bench import peers
from tailrace.bench.peer_redis import PEER
from tailrace.bench.results import Measured, read

pytestmark = pytest.mark.slow
PATHS = ("produce", "consume-batches", "consume-each", "ack-latency-p50", "deliver-latency-p99")


def test_redis_is_measured_and_what_it_has_no_call_for_is_said() -> None:
    if reason := missing():
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    command = [sys.executable, "-m", "tailrace.bench.peers", "--systems", "redis", "--round", "3"]
    command += [
        "--seconds",
        "0.05",
        "--warm",
        "0.05",
        "--rates",
        "500",
        "--paths",
        ",".join((*PATHS, "produce-each")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = list(read(done.stdout.splitlines()))
    assert {one.path for one in figures} == set(PATHS)
    assert {(one.system, one.round, one.size_bytes) for one in figures} == {("redis", 3, 100)}
    assert all(one.value > 0 for one in figures)
    assert durabilities(figures, "produce") == [False, True]
    assert durabilities(figures, "ack-latency-p50") == [True]
    assert "redis: no produce-each" in done.stderr


def missing() -> str:
    try:
        peers.present(PEER)
    except FileNotFoundError as error:
        return str(error)
    return ""


def durabilities(figures: list[Measured], path: str) -> list[bool | None]:
    return [one.durable for one in figures if one.path == path]
