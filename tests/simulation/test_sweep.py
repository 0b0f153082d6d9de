"""What a sweep tells of its seeds."""

import pytest

from tests.simulation.sweep import distances, parse_seeds, tell_distances


def test_a_bug_is_as_far_as_the_next_seed_that_fails() -> None:
    assert distances(parse_seeds("10-15"), {12, 14}) == [3, 2, 1, 2, 1]
    assert distances(parse_seeds("10-12"), set()) == []


def test_how_far_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    tell_distances(range(6), {5, 1})
    tell_distances(range(6), set())
    assert capsys.readouterr().out == (
        "caught by 1, 5\nafter 2 seeds in the median of all beginnings, 4 at most\ncaught by none\n"
    )
