"""All states of a small cluster keep what is promised; with a bug planted, some do not."""

import pytest

from tailrace.broker.replica import Follower, Replica
from tests.model.planted import PLANTED, find, find_anybody
from tests.model.search import search, walk
from tests.model.state import Rules

pytestmark = pytest.mark.slow

# Every action is in one of them; `make model` has them together, and takes minutes.
BOUNDS = {
    "a crash": Rules(crashes=1, epochs=3),
    "a crash that loses what was only written": Rules(crashes=1, epochs=3, durability="replicated"),
    "all restart unclean, one of them loses": Rules(
        crashes=1, kills=1, epochs=3, isr="ab", durability="replicated"
    ),
    "a disk that is lost": Rules(wipes=1, late=1, isr="ab"),
    "leaders that change": Rules(moves=2, epochs=3),
    "a change of the ISR between two leaders": Rules(moves=1, changes=1, isr="ab"),
    "a change of the ISR that is in doubt": Rules(changes=1, doubts=1, isr="ab"),
    "a min_isr that is lowered": Rules(changes=1, lowered=1, isr="ab"),
    "a replica that moves": Rules(targets=1, epochs=3),
    "a copy that is given up": Rules(losses=1, isr="ab"),
    "a lease that ends": Rules(expiries=1, epochs=3, isr="ab"),
}


@pytest.mark.parametrize("bounds", BOUNDS)
def test_all_states_keep_the_invariants(bounds: str) -> None:
    found = search(BOUNDS[bounds])
    assert not found.broken, str(found)
    assert found.complete


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    assert find(bug).broken


def test_a_leader_from_anywhere_is_found() -> None:
    assert find_anybody().broken


def test_a_walk_by_chance_is_the_same_each_time() -> None:
    much = Rules(records=3, epochs=5, crashes=2, wipes=1, expiries=2, late=2, changes=4, moves=2)
    assert walk(much, 7, 40).way == walk(much, 7, 40).way
    assert not walk(much, 7, 40).broken


def test_the_model_copies_all_there_is() -> None:
    """Whoever adds a field to one of these adds it to ``state.py``: to copies, and to keys."""
    assert len([*Replica.__slots__]) == 15
    assert len([*Follower.__slots__]) == 8
