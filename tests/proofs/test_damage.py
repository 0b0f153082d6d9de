"""One damage of each kind with every run of the tests; `make proofs-storage` tries 200."""

from pathlib import Path

import pytest

from tests.proofs.damage import KINDS, sweep


@pytest.mark.slow
def test_whatever_is_damaged_no_wrong_byte_is_served_and_the_rest_is(tmp_path: Path) -> None:
    found = sweep(len(KINDS), tmp_path)
    assert not found.failures, "\n".join(found.failures)
    print(f"{found.kinds}: {found.outcomes}, {found.lost} records said to be damaged")
