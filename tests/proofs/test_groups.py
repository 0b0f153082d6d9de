"""A small share of the proofs of groups, with wide bounds; `make proofs-groups` runs them whole."""

from pathlib import Path

import pytest

from tests.proofs import group_churn, group_failover, group_order, group_stall


@pytest.mark.slow
def test_partitions_of_dead_and_of_leaving_members_go_on_elsewhere(tmp_path: Path) -> None:
    plan = group_failover.Plan(
        records=0,
        partitions=6,
        per_tick=1,
        session_timeout=1.0,
        calm_s=0.5,
        again=False,
        pause_ms_max=3_000.0,
        handover_ms_max=3_000.0,
        sessions_max=4.0,
    )
    group_failover.prove(tmp_path, plan)


@pytest.mark.slow
def test_a_handler_that_sleeps_costs_no_session_and_is_called_stalled(tmp_path: Path) -> None:
    plan = group_stall.Plan(
        sleep_s=5.0,
        block_s=0.0,
        session_timeout=2.0,
        window_s=2.0,
        commit_interval=0.1,
        look_every_s=0.1,
        members=1,
    )
    group_stall.prove(tmp_path, plan)


@pytest.mark.slow
def test_no_session_is_missed_while_members_come_and_go(tmp_path: Path) -> None:
    plan = group_churn.Plan(
        groups=20,
        members=80,
        churn_per_min=6.0,
        commits_per_s=20.0,
        seconds=3.0,
        look_at_memory=False,
        p99_ms_max=3_000.0,
    )
    group_churn.prove(tmp_path, plan, seed=1)


def told(*notes: str) -> list[str]:
    """What is wrong with notes like "m begin 0"; even offsets of partition 0 have one key."""
    keys = {(0, offset): b"%d" % (offset % 2) for offset in range(4)}
    story = group_order.Story(keys)
    for note in notes:
        member, what, offset = note.split()
        story.notes.append((member, what, (0, int(offset))))
    return story.faults()


def test_what_is_out_of_order_is_seen() -> None:
    assert not told("m begin 0", "m begin 1", "m done 1", "m done 0", "m begin 2", "m done 2")
    assert not told("m begin 0", "m done 0", "n begin 0", "n done 0", "n begin 2")
    assert told("m begin 2", "m done 2", "m begin 0", "m done 0")
    assert told("m begin 0", "n begin 0", "m done 0", "n done 0")
    assert told("m begin 0", "m failed 0", "m begin 2", "m done 2")
