"""The proof of erasure at small size: a real process, killed in the middle of it."""

import random
from pathlib import Path

import pytest

from tailrace.bench.processes import BrokerProcess
from tests.proofs.erase import prove


@pytest.mark.slow
def test_an_erasure_is_finished_after_kills_and_no_file_holds_a_byte_of_it(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        prove(broker, 20_000, 2, None, random.Random(1))
