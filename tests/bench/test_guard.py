from contextlib import nullcontext

import pytest

from tailrace.bench import micro
from tailrace.bench.guard import Baseline, compare, counts_of

DUMP = "version: 1\ndesc: Trigger: dump encode:200\nevents: Ir\n16 5\ntotals: 401\n"


def test_instructions_are_those_of_one_operation() -> None:
    end = DUMP.replace("dump encode:200", "Program termination")
    assert counts_of([DUMP, end]) == {"encode": 2}


def test_what_moved_beyond_the_tolerance_is_named() -> None:
    before = {"decode": 1_000, "encode": 1_000, "log": 1_000}
    lines, moved = compare(before, {"decode": 1_029, "encode": 1_031, "log": 900}, 3.0)
    assert moved == ["encode"]
    assert ["SLOWER" in line for line in lines] == [False, True, False]
    assert "faster" in lines[2]


def test_work_that_is_new_or_gone_needs_an_update() -> None:
    lines, moved = compare({"old": 1}, {"new": 1}, 3.0)
    assert moved == ["new", "old"]
    assert all("update" in line for line in lines)


def test_a_baseline_comes_back_from_its_file() -> None:
    baseline = Baseline({"python": "3.11.7"}, {"encode": 5})
    assert Baseline.loads(baseline.dumps()) == baseline


@pytest.mark.parametrize("text", ["[]", "{}"])
def test_what_is_no_baseline_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no baseline"):
        Baseline.loads(text)


@pytest.mark.parametrize(
    ("work", "names"),
    [
        (micro.log, ["log"]),
        (micro.framing, ["framing"]),
        pytest.param(micro.send, ["send"], marks=pytest.mark.slow),
        pytest.param(micro.send_many, ["send_many"], marks=pytest.mark.slow),
        pytest.param(micro.enqueue, ["enqueue"], marks=pytest.mark.slow),
        pytest.param(micro.consume, ["batches", "each"], marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_work_that_is_counted_can_be_done(work: micro.Work, names: list[str]) -> None:
    named: list[str] = []

    def count(name: str, operations: int) -> nullcontext[None]:
        named.append(name)
        return nullcontext()

    work(count)
    assert named == names
