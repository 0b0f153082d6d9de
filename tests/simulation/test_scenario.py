"""The first scenario holds for some seeds, replays exactly, and finds what is planted."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tailrace.testing import Broker
from tests.simulation.scenario import run_seed
from tests.simulation.sweep import headline, try_seed

SEEDS = range(12)  # `make sim` runs 300


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_no_promise_is_broken(seed: int) -> None:
    result = try_seed(seed)
    assert not result.failure, f"{headline(seed)}\n{result.failure}"
    assert result.outcome is not None
    report = result.outcome.value
    assert report.acked > 0
    assert report.read > 0


@pytest.mark.slow
def test_a_seed_takes_the_same_course_again_also_in_another_process() -> None:
    seed = 7
    expected = run_seed(seed)
    assert run_seed(seed) == expected
    command = [sys.executable, "-m", "tests.simulation.sweep", "--seeds", str(seed), "--verbose"]
    for hash_seed in ("1", "2"):
        output = subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert output.startswith(f"seed {seed} {expected.trace} "), output


@pytest.mark.slow
def test_a_live_broker_beside_it_changes_nothing() -> None:
    expected = run_seed(3)
    with Broker() as broker, ThreadPoolExecutor(1) as pool:
        values: list[bytes | None] = [b"x"] * 100
        seeding = pool.submit(lambda: [broker.seed("live", values) for _ in range(20)])
        assert run_seed(3) == expected
        assert len(seeding.result()) == 20
