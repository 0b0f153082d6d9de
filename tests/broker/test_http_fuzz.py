"""What schemathesis makes of the OpenAPI document; the long run is ``make proofs-http``."""

from pathlib import Path

import pytest

from tailrace.testing import Broker
from tests.proofs.http_fuzz import PHASES, TAIL, check, seeded


@pytest.mark.slow
def test_no_answer_is_a_5xx_or_outside_of_the_document(tmp_path: Path) -> None:
    with seeded() as broker:
        options = ("--exclude-operation-id", TAIL, "--phases", PHASES)
        found = check(broker, tmp_path, 2, *options)
    assert found.returncode == 0, found.stdout


@pytest.mark.slow
def test_no_refusal_of_a_tail_is_outside_of_the_document(tmp_path: Path) -> None:
    with Broker(http=True) as broker:
        options = ("--include-operation-id", TAIL, "--phases", PHASES)
        found = check(broker, tmp_path, 5, *options)
    assert found.returncode == 0, found.stdout
