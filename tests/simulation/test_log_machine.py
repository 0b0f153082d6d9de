"""A log is a list over any sequence of operations, restarts, deaths and power cuts."""

import pytest

from tests.simulation.log_machine import run

EXAMPLES = 200  # `make proofs-storage` tries 20,000


@pytest.mark.slow
def test_a_log_is_a_list_whatever_is_done_to_it_and_whenever_it_dies() -> None:
    run(EXAMPLES)
