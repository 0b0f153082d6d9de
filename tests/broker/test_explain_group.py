"""Why a group does not progress: from facts to sentences and a command."""

from dataclasses import replace

from tailrace.broker.explain import MemberFacts, Standing
from tailrace.broker.explain_group import GroupFacts, MissingTopic, Moving, explain_group

MEMBER = MemberFacts("app-1", "10.0.0.7", 0.3, 1)
STANDING = Standing(
    *("orders", 2, 480, 1.0, 120, 493, 13, 5.0, 5.0, "ok", None),
    owner=MEMBER,
    damaged=False,
    retention="7d",
)
WELL = GroupFacts(
    *("billing", "stable", 14, "n1", "ok", 13, 0.6, 2.0),
    members=(MEMBER,),
    standings=(STANDING,),
)
NOBODY = replace(WELL, state="empty", members=(), standings=(replace(STANDING, owner=None),))
DESCRIBE = "tailrace group describe billing"


def test_a_group_that_is_well() -> None:
    found = explain_group(WELL)
    assert (found.target, found.kind, found.verdict, found.next) == (
        *("billing", "group", "ok"),
        None,
    )
    assert found.summary == (
        "Group 'billing' is stable with 1 member and is 13 records behind. At the present rates it"
        " catches up in 2 s."
    )
    done = replace(WELL, lag_records=0, standings=(replace(STANDING, lag_records=0),))
    assert explain_group(done).summary.endswith("and has read everything.")


def test_records_that_are_gone_come_first() -> None:
    lost = replace(STANDING, committed=20, owner=None)
    found = explain_group(replace(NOBODY, standings=(lost,)))
    assert found.next == "tailrace group reset billing --to start --partition orders:2"
    assert "it is at 20, but the log starts at 120, so 100 offsets are gone unread" in found.summary
    found = explain_group(replace(WELL, standings=(replace(lost, owner=MEMBER),)))
    assert (found.next, "Stop its members first." in found.summary) == (DESCRIBE, True)
    ahead = replace(STANDING, committed=900, owner=None)
    found = explain_group(replace(NOBODY, standings=(ahead,)))
    assert found.next == "tailrace group reset billing --to end --partition orders:2"
    damaged = replace(STANDING, damaged=True)
    found = explain_group(replace(WELL, standings=(damaged,)))
    assert found.next == "tailrace explain orders:2:480 -g billing"


def test_what_is_not_there_is_named() -> None:
    missing = (MissingTopic("ordres", ("orders",)), MissingTopic("gone"))
    found = explain_group(replace(WELL, missing=missing))
    assert "'ordres', which does not exist; similar: orders." in found.summary
    assert "'gone', which does not exist (any more)." in found.summary
    assert found.next == "tailrace topic list"
    down = replace(STANDING, log_start=-1, log_end=-1)
    found = explain_group(replace(WELL, standings=(down,)))
    assert found.next == "tailrace explain orders:2"


def test_a_group_without_members() -> None:
    found = explain_group(NOBODY)
    assert "the group has no members; it last committed 1 s ago." in found.summary
    assert found.next == DESCRIBE
    done = replace(NOBODY, lag_records=0)
    assert explain_group(done).next is None


def test_a_partition_that_changes_hands_names_who_has_it_and_for_how_long() -> None:
    moving = replace(WELL, state="assigning", moving=(Moving("orders", 2, MEMBER, 21.4),))
    found = explain_group(moving)
    assert (
        "orders[2] changes hands: app-1 at 10.0.0.7 still has it, and has 21 s left to finish"
    ) in found.summary
    assert found.next == DESCRIBE
    found = explain_group(replace(WELL, state="assigning", gathering=True))
    assert "waits for more members to join" in found.summary


def test_a_stalled_partition_names_offset_time_and_member() -> None:
    stalled = replace(STANDING, verdict="stalled", committed_s=130.0)
    found = explain_group(replace(WELL, verdict="stalled", standings=(stalled,)))
    assert (found.verdict, found.next) == (
        "stalled",
        "tailrace consume orders -p 2 -o 480 -n 1 -e",
    )
    assert "stalled in orders[2] at offset 480: for 130 s nothing was committed" in found.summary
    assert "app-1 at 10.0.0.7 has it and was heard 0.3 s ago" in found.summary
    facts = {fact.name: fact.value for fact in found.facts}
    assert facts["stalled"] == ["orders[2]@480"]
    assert facts["stalled_members"] == ["app-1 at 10.0.0.7"]


def test_a_group_that_never_committed_stalls_at_the_start() -> None:
    stalled = replace(STANDING, verdict="stalled", committed=None, committed_s=None)
    found = explain_group(replace(WELL, verdict="stalled", standings=(stalled,)))
    assert "stalled in orders[2] at offset 120: nothing was ever committed there." in found.summary


def test_a_group_that_is_too_slow_tells_both_rates() -> None:
    slow = replace(STANDING, verdict="warn", lag_records=4_000, rate=10.0, write_rate=25.5)
    found = explain_group(replace(WELL, verdict="warn", standings=(slow,)))
    assert "4,000 records, it reads 10.0/s while 25.5/s are written." in found.summary
    soon = replace(slow, margin_s=5_400.0)
    found = explain_group(replace(WELL, verdict="warn", standings=(soon,)))
    assert "Unread records of orders[2] expire in 5,400 s." in found.summary


def test_idle_members_and_partitions_of_nobody() -> None:
    spare = MemberFacts("app-2", "10.0.0.8", 0.1, 0)
    found = explain_group(replace(WELL, members=(MEMBER, spare)))
    assert "app-2 at 10.0.0.8 is idle (T071): 1 partition for 2 members." in found.summary
    assert found.next == DESCRIBE
    found = explain_group(replace(WELL, standings=(replace(STANDING, owner=None),)))
    assert "orders[2] belongs to no member at present." in found.summary


def test_only_a_few_of_one_kind_are_told() -> None:
    many = tuple(replace(STANDING, partition=n, verdict="warn") for n in range(10))
    assert explain_group(replace(WELL, standings=many)).summary.count("falls behind") == 3


def test_names_are_quoted_for_a_shell() -> None:
    found = explain_group(replace(NOBODY, name="my group"))
    assert found.next == "tailrace group describe 'my group'"
    found = explain_group(replace(NOBODY, name="-x"))
    assert found.next == "tailrace group describe -- -x"
