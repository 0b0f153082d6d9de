"""How much longer the limits of the first ten minutes may be, and what is said of it."""

import dataclasses
from collections.abc import Iterator

import pytest

from tests.proofs import pace
from tests.proofs.first_ten import Row, Table
from tests.proofs.newcomer import Stumble
from tests.proofs.pace import IDLE_S, allowance, describe


@pytest.mark.parametrize(
    ("slower", "times"), [(0.2, 1.0), (1.0, 1.0), (1.5, 1.5), (3.0, 3.0), (8.0, 3.0)]
)
def test_limits_are_as_much_longer_as_the_machine_is_slower_up_to_three_times(
    slower: float, times: float
) -> None:
    assert allowance(slower * IDLE_S) == pytest.approx(times)


def test_a_machine_that_is_as_fast_gets_no_more_time() -> None:
    assert describe(IDLE_S / 2) == "`python -c 'import trio'` took up to 0.12 s: limits as they are"


def test_longer_limits_say_why_and_when_they_are_not_long_enough() -> None:
    said = "and 0.25 s on an idle machine: limits are up to 2.0 times as long"
    assert describe(2 * IDLE_S).endswith(said)
    assert describe(8 * IDLE_S).endswith(
        "3.0 times as long, which is the most, 8.0 would be needed"
    )


def test_a_row_is_judged_by_its_own_allowance() -> None:
    row = Row("1:00", "tailrace produce hello", 1.9, 1.0)
    assert not row.ok
    assert row.limit == "1 s"
    slower = dataclasses.replace(row, allowance=2.0)
    assert slower.ok
    assert slower.limit == "1 s x 2.0"
    assert not dataclasses.replace(slower, seconds=2.1).ok


def test_the_slower_of_before_and_after_counts_and_rows_stay_where_the_next_one_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "measure", lambda: 2 * IDLE_S)
    table = Table()

    def step() -> Iterator[Row]:
        yield Row("1:00", "one", 1.9, 1.0)
        yield Row("1:00", "two", 2.1, 1.0)
        raise Stumble("and then nothing came")

    assert table.play(step, before_s=IDLE_S) == 2 * IDLE_S
    lines = str(table).splitlines()
    assert lines[1].split() == ["1:00", "one", "1.900", "s", "1", "s", "x", "2.0", "ok"]
    assert lines[2].split()[-2:] == ["NOT", "OK"]
    assert lines[3].startswith("      step")
    assert table.trouble == ["1:00 took 2.100 s of 1 s x 2.0: ", "step: and then nothing came"]
