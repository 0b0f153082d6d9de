"""A follower's log is its leader's, batch for batch: what it takes, refuses, and cuts off."""

from pathlib import Path

import pytest

from tailrace.protocol.batch import patch
from tailrace.storage.checkpoint import Kind, encode
from tailrace.storage.log import Log, LogConfig
from tailrace.storage.replicating import BeginsBelow, ReplicaRefused
from tests.storage.logs import (
    ALL,
    SEED,
    SMALL,
    FullDisk,
    append,
    batch,
    entries,
    files,
    fill,
    open_log,
)

NEVER = 100


def leader_and_follower(path: Path) -> tuple[Log, Log]:
    (path / "a").mkdir()
    (path / "b").mkdir()
    return open_log(path / "a"), open_log(path / "b")


def stored(log: Log, offset: int = 0, bytes_max: int = ALL) -> memoryview:
    """What a leader sends of its log."""
    piece = log.read(offset, bytes_max, log.end)
    return memoryview(b"".join(bytes(one.view()) for one in piece.ranges))


def copy(leader: Log, follower: Log, bytes_max: int = 700, epoch: int = NEVER) -> None:
    """Let the follower have everything."""
    while follower.end < leader.end:
        data = stored(leader, follower.end, bytes_max)
        follower.append_replica(follower.plan_replica(data, leader_epoch=epoch))


def led(log: Log, epoch: int, count: int) -> None:
    """So many batches by the leader of an epoch."""
    log.begin_epoch(epoch)
    for number in range(count):
        entry = batch(f"{epoch}-{log.end}-{number}".encode().ljust(150, b"."))
        log.append([entry], leader_epoch=epoch, now_ms=1000 + log.end)


def follow(leader: Log, follower: Log) -> None:
    """What leader and follower say to each other until the logs are equal (R1, R8)."""
    for _ in range(20):
        if not leader.start <= follower.end <= leader.end and follower.last_epoch < 0:
            follower.reset_to(leader.start)
        epoch, end = follower.last_epoch, follower.end
        found = leader.end_of_epoch(epoch)
        if epoch >= 0 and (found.epoch != epoch or found.start_offset < end):
            before = follower.end
            follower.truncate_for(*found)
            assert follower.end < before
            continue
        if follower.end < leader.start:
            follower.reset_to(leader.start)
        if follower.end == leader.end:
            return
        data = stored(leader, follower.end, 700)
        try:
            plan = follower.plan_replica(data, leader_epoch=NEVER)
        except BeginsBelow as below:
            follower.cut_back(below.base_offset)
            if follower.end != below.base_offset:
                continue
            plan = follower.plan_replica(data, leader_epoch=NEVER)
        follower.append_replica(plan)
    raise AssertionError("they do not agree")


def test_a_follower_holds_the_same_bytes_at_the_same_offsets(tmp_path: Path) -> None:
    leader, follower = leader_and_follower(tmp_path)
    fill(leader, 60, size=120)
    append(leader, batch(b"a", b"b", producer=(7, 0, 0)), batch(b"c", producer=(7, 0, 2)))
    copy(leader, follower)
    assert entries(follower) == entries(leader)
    assert follower.epochs == leader.epochs
    assert follower.last_append_time == leader.last_append_time
    assert follower.segment_count > 2


def test_its_producers_are_those_of_the_leader(tmp_path: Path) -> None:
    leader, follower = leader_and_follower(tmp_path)
    for sequence in range(0, 16, 2):
        append(leader, batch(b"a", b"b", producer=(7, 3, sequence)))
    append(leader, batch(b"x", producer=(9, 0, 0)))
    copy(leader, follower)
    assert list(follower.producers) == list(leader.producers)
    again = append(follower, batch(b"a", b"b", producer=(7, 3, 14)))[0]
    assert (again.base_offset, again.duplicate) == (14, True)


def test_it_survives_being_opened_again(tmp_path: Path) -> None:
    leader, follower = leader_and_follower(tmp_path)
    fill(leader, 40)
    copy(leader, follower)
    follower.sync()
    follower.close(clean=False)
    again = open_log(tmp_path / "b")
    assert entries(again) == entries(leader)
    assert again.epochs == leader.epochs


@pytest.mark.parametrize("position", [0, 17, 33, 40, 60, 84, 90, -1])
def test_a_damaged_batch_is_refused_wherever_the_damage_is(tmp_path: Path, position: int) -> None:
    leader, follower = leader_and_follower(tmp_path)
    fill(leader, 3)
    good = stored(leader)
    bad = bytearray(good)
    bad[position] ^= 4
    with pytest.raises(ReplicaRefused):
        follower.plan_replica(memoryview(bad), leader_epoch=NEVER)
    assert follower.end == 0
    follower.append_replica(follower.plan_replica(good, leader_epoch=NEVER))
    assert follower.end == 3


def test_half_a_batch_is_refused(tmp_path: Path) -> None:
    leader, follower = leader_and_follower(tmp_path)
    fill(leader, 2)
    for left in (1, 50, len(stored(leader)) // 2 + 1):
        with pytest.raises(ReplicaRefused):
            follower.plan_replica(stored(leader)[:left], leader_epoch=NEVER)


def test_a_gap_is_refused(tmp_path: Path) -> None:
    leader, follower = leader_and_follower(tmp_path)
    fill(leader, 3)
    with pytest.raises(ReplicaRefused, match="offset 1 where 0 should follow"):
        follower.plan_replica(stored(leader, 1), leader_epoch=NEVER)


def test_epochs_and_append_times_never_fall_along_a_log(tmp_path: Path) -> None:
    leader, follower = leader_and_follower(tmp_path)
    led(leader, 4, 1)
    copy(leader, follower)
    for epoch, time in ((3, 2000), (4, 999), (9, 2000)):
        entry = batch()
        patch(entry, seed=SEED, base_offset=1, leader_epoch=epoch, append_time=time)
        with pytest.raises(ReplicaRefused):
            follower.plan_replica(entry, leader_epoch=8)


def test_an_epoch_begins_with_its_first_batch(tmp_path: Path) -> None:
    leader, follower = leader_and_follower(tmp_path)
    led(leader, 1, 2)
    leader.begin_epoch(3)
    led(leader, 5, 3)
    copy(leader, follower)
    assert follower.epochs == [(1, 0), (5, 2)] == leader.epochs
    assert follower.last_epoch == 5


def test_an_epoch_in_which_it_led_and_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    """Else it would claim that its last batch is of an epoch that the leader never saw there."""
    leader, follower = leader_and_follower(tmp_path)
    led(leader, 4, 2)
    copy(leader, follower)
    follower.begin_epoch(5)
    assert follower.last_epoch == 4
    led(leader, 4, 1)
    copy(leader, follower)
    assert follower.epochs == [(4, 0)]
    follower.close(clean=False)
    assert open_log(tmp_path / "b").epochs == [(4, 0)]


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    disk = FullDisk()
    leader, follower = open_log(tmp_path / "a"), open_log(tmp_path / "b", disk=disk)
    fill(leader, 30)
    plan = follower.plan_replica(stored(leader), leader_epoch=NEVER)
    disk.bytes_left = 500
    with pytest.raises(OSError, match="No space"):
        follower.append_replica(plan)
    assert (follower.end, len(follower.producers)) == (0, 0)
    disk.bytes_left = None
    copy(leader, follower)
    assert entries(follower) == entries(leader)


# ── truncation ───────────────────────────────────────────────────────────────────────────────


def test_a_tail_that_the_new_leader_never_had_goes_and_no_more(tmp_path: Path) -> None:
    leader, follower = leader_and_follower(tmp_path)
    led(leader, 1, 5)
    copy(leader, follower)
    led(follower, 1, 3)  # it was the leader, and nobody else got these
    led(leader, 2, 2)
    follow(leader, follower)
    assert entries(follower) == entries(leader)
    assert follower.epochs == leader.epochs == [(1, 0), (2, 5)]


def test_a_fast_double_failover(tmp_path: Path) -> None:
    """KIP-279: two logs of equal length whose tails are of different epochs."""
    leader, follower = leader_and_follower(tmp_path)
    led(leader, 1, 4)
    copy(leader, follower)
    led(leader, 2, 1)
    led(follower, 3, 1)
    follower.begin_epoch(4)
    leader, follower = follower, leader
    follow(leader, follower)
    assert entries(follower) == entries(leader)


def test_several_epochs_apart(tmp_path: Path) -> None:
    leader, follower = leader_and_follower(tmp_path)
    led(leader, 1, 3)
    copy(leader, follower)
    for epoch in (2, 4, 6):
        led(follower, epoch, 2)
    for epoch in (3, 5, 7):
        led(leader, epoch, 3)
    follow(leader, follower)
    assert entries(follower) == entries(leader)
    assert follower.epochs == leader.epochs


def test_an_equal_log_is_not_touched(tmp_path: Path) -> None:
    leader, follower = leader_and_follower(tmp_path)
    led(leader, 1, 5)
    copy(leader, follower)
    leader.begin_epoch(2)
    follower.truncate_for(*leader.end_of_epoch(follower.last_epoch))
    assert follower.end == 5


# ── a log that is too far behind ─────────────────────────────────────────────────────────────


def test_one_that_is_too_far_behind_begins_where_the_leader_does(tmp_path: Path) -> None:
    leader, follower = leader_and_follower(tmp_path)
    fill(leader, 10)
    copy(leader, follower)
    fill(leader, 60, size=100)
    leader.sync()
    leader.drop_before(50)
    follow(leader, follower)
    assert (follower.start, follower.end) == (leader.start, leader.end)
    assert entries(follower) == entries(leader)
    follower.sync()
    follower.close(clean=False)
    again = open_log(tmp_path / "b")
    assert (again.start, again.quarantined) == (leader.start, [])
    assert entries(again) == entries(leader)


def test_a_log_that_starts_inside_a_batch_is_copied_from_that_batch_on(tmp_path: Path) -> None:
    leader, follower = leader_and_follower(tmp_path)
    append(leader, batch(b"a", b"b", b"c", b"d"), batch(b"e"))
    leader.sync()
    leader.set_start(2)
    follow(leader, follower)
    assert (follower.start, follower.end) == (0, 5)
    follower.sync()
    follower.set_start(leader.start)
    assert entries(follower) == entries(leader)


def test_a_reset_that_died_half_way_is_ended_by_the_next_start(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 30)
    log.close(clean=True)
    (tmp_path / "log" / "reset").write_bytes(encode(Kind.RESET, (77).to_bytes(8)))
    again = open_log(tmp_path)
    assert (again.start, again.end, again.epochs, again.quarantined) == (77, 77, [], [])
    assert "reset" not in files(tmp_path)


def test_a_damaged_order_to_reset_is_not_followed(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    fill(log, 3)
    log.close(clean=True)
    (tmp_path / "log" / "reset").write_bytes(b"\0" * 32)
    assert open_log(tmp_path).end == 3
    assert "reset" not in files(tmp_path)


def test_segments_roll_by_the_follower_s_own_size_and_the_batches_age(tmp_path: Path) -> None:
    config = LogConfig(segment_bytes=1 << 20, segment_age_ms=10, index_interval_bytes=250)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    leader, follower = open_log(tmp_path / "a"), open_log(tmp_path / "b", config=config)
    for number in range(40):
        append(leader, batch(), now_ms=1000 + number)
    copy(leader, follower)
    assert follower.segment_count == 4
    assert SMALL.segment_bytes < 1 << 20
    assert entries(follower) == entries(leader)
