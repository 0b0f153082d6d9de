"""What is said of a group that does not exist."""

from tailrace.broker.group import Group
from tailrace.broker.group_members import GroupSettings
from tailrace.broker.lag_report import SIMILAR_AMONG_MAX, not_found
from tests.broker.grouping import shapes


def groups(*names: str) -> list[Group]:
    return [Group(name, GroupSettings(), shapes()) for name in names]


def test_names_that_were_meant_are_found() -> None:
    assert not_found("biling", groups("zebra", "billing", "audit")).similar == ["billing"]


def test_among_very_many_groups_only_the_neighbours_are_looked_at() -> None:
    many = [f"group-{number:05}" for number in range(3 * SIMILAR_AMONG_MAX)]
    error = not_found("xgroup-00001", groups("aaa", *many, "xgroup-0001"))
    assert error.similar[0] == "xgroup-0001"
    assert "group-00001" not in error.similar  # far away
