"""How much room there is, and who is refused some."""

from tailrace.broker.kinds import Free
from tailrace.broker.space import RETRY_AFTER_S, RETRY_SOON_S, Budget, Room, Space

MIB = 1 << 20
TOTAL = 100 * MIB


def space(
    free: int, *, used: int = 0, max_size: int | None = None, ballast: int = MIB, total: int = TOTAL
) -> Space:
    budget = Budget(Free(None, 0.05), "5%", max_size)
    return Space(budget, Room(free, total, used), ballast)


def look(here: Space, free: int, used: int = 0, missing_ballast: int = 0) -> None:
    here.look(Room(free, TOTAL, used), missing_ballast=missing_ballast)


def test_writes_end_at_the_reserve_and_begin_again_where_a_percent_more_is_free() -> None:
    here = space(6 * MIB)
    assert not here.refuses(may_drop=False)
    look(here, 5 * MIB - 1)
    assert here.read_only
    assert here.refuses(may_drop=False)
    for free, missing, refused in (
        (5 * MIB, 0, True),
        (6 * MIB - 1, 0, True),
        (6 * MIB, MIB, True),  # the ballast has to take its room first
        (6 * MIB, 0, False),
    ):
        look(here, free, missing_ballast=missing)
        assert here.refuses(may_drop=False) is refused


def test_between_two_looks_what_is_appended_counts() -> None:
    here = space(7 * MIB)
    here.appended(MIB)
    assert not here.refuses(may_drop=False)
    here.appended(MIB + 1)
    assert here.refuses(may_drop=False)
    assert here.shortage() == ("5 MiB free", "min_free 5%")
    look(here, 7 * MIB)
    assert not here.refuses(may_drop=False)


def test_looks_are_asked_for_by_what_is_appended() -> None:
    here = space(80 * MIB)
    asked: list[int] = []
    here.wanted = lambda: asked.append(1)
    for _ in range(64):
        here.appended(MIB // 4)
    assert len(asked) == 10  # of 12.5 MiB, which is an eighth of the disk, each eighth


def test_a_topic_that_may_drop_goes_on_into_the_reserve_while_something_is_left_to_drop() -> None:
    here = space(3 * MIB)
    assert (here.refuses(may_drop=False), here.refuses(may_drop=True)) == (True, False)
    assert here.retry_after_s(may_drop=False) == RETRY_AFTER_S
    here.drained = True
    assert here.refuses(may_drop=True)
    assert here.retry_after_s(may_drop=True) == RETRY_AFTER_S
    look(here, 40 * MIB)
    assert not here.drained
    look(here, MIB - 1)
    assert here.refuses(may_drop=True)  # the last bytes are not a producer's
    assert here.retry_after_s(may_drop=True) == RETRY_SOON_S


def test_room_is_made_before_it_is_wanted_and_some_more_where_writes_were_refused() -> None:
    here = space(40 * MIB)
    for free, pressed in ((40 * MIB, False), (11 * MIB, True), (4 * MIB, True)):
        look(here, free)
        assert here.pressed is pressed
    assert here.missing_bytes == 13.5 * MIB
    assert space(11 * MIB).missing_bytes == 12.5 * MIB - 6 * MIB
    large = space(60 << 30, total=1 << 40)  # of which 1% is more than is kept ahead
    large.look(Room(50 << 30, 1 << 40, 0), missing_ballast=0)
    assert large.missing_bytes > (1 << 40) // 100


def test_the_budget_of_all_records_is_a_limit_of_its_own() -> None:
    here = space(90 * MIB, used=30 * MIB, max_size=32 * MIB)
    assert (here.capacity_bytes, here.room_bytes) == (32 * MIB, 2 * MIB)
    here.appended(2 * MIB + 1)
    assert here.refuses(may_drop=False)
    assert not here.refuses(may_drop=True)
    assert here.shortage() == ("32 MiB used", "max_size 32 MiB")
    here.appended(4 * MIB)
    assert here.refuses(may_drop=True)  # nobody drops so slowly
    look(here, 90 * MIB, used=33 * MIB)
    assert here.read_only
    look(here, 90 * MIB, used=32 * MIB)
    assert here.read_only
    look(here, 90 * MIB, used=31 * MIB)
    assert not here.read_only


def test_new_topics_find_room_below_the_reserve_but_not_in_the_last_bytes() -> None:
    here = space(3 * MIB)
    assert not here.refuses_partitions(10)
    assert here.refuses_partitions(1000)
    assert space(MIB // 2).refuses_partitions(1)


def test_a_write_that_finds_no_room_is_believed_until_the_next_look() -> None:
    here = space(50 * MIB)
    asked: list[int] = []
    here.wanted = lambda: asked.append(1)
    here.ran_out()
    assert asked
    assert here.free_bytes == 0
    assert here.refuses(may_drop=True)
    look(here, 50 * MIB)
    assert not here.refuses(may_drop=True)


def test_a_quota_is_named_as_such_where_the_disk_itself_has_room() -> None:
    here = space(50 * MIB)
    here.ran_out(quota=True)
    assert here.shortage()[0] == "0 B free (disk quota exceeded)"
    look(here, 50 * MIB)
    assert "quota" not in here.shortage()[0]
