"""What is made of the store's answers: everything is seen, nothing twice, and never backwards."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import trio
from trio.testing import MockClock

from tailrace.broker.catalog import Deletion, Leadership, Topic, new_topic, partition_key
from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.health import Health
from tailrace.broker.members import DRAINS, BrokerRecord
from tailrace.broker.metrics import Metrics
from tailrace.broker.registry import Registry
from tailrace.broker.views import TOGETHER_MAX_S, TOGETHER_S, WHOLE_EVERY_S, Views
from tailrace.protocol import texts
from tailrace.simulation.chance import seeded
from tailrace.simulation.clock import SimClock
from tailrace.simulation.life import Life
from tailrace.simulation.meta import MetaKeep, SimMeta

ID = bytes(range(16))
TOPIC = new_topic("orders", ID, placement=[("n1", "n2")] * 2, replicas=None, config={})


class Stage:
    """Views of a store, and what they tell."""

    def __init__(self) -> None:
        self.keep = MetaKeep(seeded(1, "keep"))
        self.store = SimMeta(self.keep, Life("n1"))
        metrics = Metrics(version="0", topics_max=10, clock=lambda: 0.0)
        registry = Registry(self.store, "n1", SimClock(), metrics, Health())
        self.views = Views(registry)
        self.followed: list[tuple[ClusterView, bool]] = []
        self.told: list[ClusterView] = []
        self.views.keeper = self._follow
        self.views.on_view.append(self.told.append)
        self.listed: list[tuple[str, int]] = []
        self.leaderships_read = trio.Event()  # by some reading, which goes on
        listing = self.store.list

        async def noted(prefix: str, since: int = 0) -> object:
            self.listed.append((prefix, since))
            if prefix == DRAINS:
                self.leaderships_read.set()
            return await listing(prefix, since)

        self.store.list = noted  # type: ignore[method-assign,assignment]

    async def _follow(self, view: ClusterView, *, whole: bool) -> None:
        self.followed.append((view, whole))

    def put(self, topic: Topic = TOPIC) -> None:
        self.keep.transact([], {topic.key: topic.to_json()}, [], None)

    def lead(self, number: int, leader: str, epoch: int = 1) -> Leadership:
        one = Leadership(leader, epoch, ("n1", "n2"), replicas=("n1", "n2"))
        self.keep.transact([], {partition_key(ID, number): one.to_json()}, [], None)
        return replace(one, revision=self.keep.revision)


def led_in(epoch: int) -> Callable[[ClusterView], bool]:
    """Whether the first partition is led in that epoch."""
    return lambda view: (
        (ID, 0) in view.leaderships and view.leaderships[ID, 0].leader_epoch == epoch
    )


def run(main: Callable[[Stage], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(1_000):
            await main(Stage())

    trio.run(bounded, clock=MockClock(autojump_threshold=0))


def test_everything_is_read_once_and_then_what_has_changed() -> None:
    async def main(stage: Stage) -> None:
        stage.lead(0, "n1")
        stage.put()
        record = BrokerRecord("n1", {}, None, "east", "1.0", 0, "d1")
        stage.keep.transact([], {record.key: record.to_json()}, [], None)
        for key in ("draining/n2", "drains/n3", "controller"):
            value = b'{"broker": "%s"}' % key.rpartition("/")[2].encode()
            stage.keep.transact([], {key: value}, [], None)
        view = await stage.views.now()
        assert view.catalog.by_name["orders"].topic_id == ID
        assert view.leaderships[ID, 0].leader == "n1"
        assert view.brokers["n1"].epoch == stage.keep.entries["brokers/n1"].revision
        assert view.draining == frozenset(("n2",))
        assert view.drains == frozenset(("n3",))
        assert view.controller_revision == stage.keep.entries["controller"].revision
        assert ("partitions/", 0) in stage.listed
        latest = stage.keep.entries[partition_key(ID, 0)].revision
        moved = stage.lead(1, "n2")
        assert (await stage.views.now()).leaderships[ID, 1] == moved
        assert ("partitions/", latest) in stage.listed

    run(main)


def test_nobody_is_told_of_a_view_that_is_as_before() -> None:
    async def main(stage: Stage) -> None:
        stage.put()
        first = await stage.views.now()
        stage.keep.transact([], {"producer_ids": b"{}"}, [], None)
        assert await stage.views.now() is not first or len(stage.told) == 1
        assert len(stage.told) == 1

    run(main)


def test_partitions_come_with_their_topic_also_if_they_were_read_before_it() -> None:
    async def main(stage: Stage) -> None:
        known = stage.lead(0, "n1")
        view = await stage.views.now()
        assert not view.leaderships
        assert view.orphans == {(ID, 0)}
        stage.put()
        view = await stage.views.now()
        assert view.leaderships == {(ID, 0): known}
        assert not view.orphans

    run(main)


def test_a_deleted_topic_is_gone_with_its_partitions() -> None:
    async def main(stage: Stage) -> None:
        stage.put()
        stage.lead(0, "n1")
        await stage.views.now()
        deletion = Deletion(ID, "orders", 2, ("n1",))
        stage.keep.transact([], {deletion.key: deletion.to_json()}, [TOPIC.key], None)
        view = await stage.views.now()
        assert not view.catalog.by_id
        assert not view.leaderships
        assert view.deletions[ID].pending == ("n1",)
        await trio.sleep(WHOLE_EVERY_S)
        view = await stage.views.now()
        assert view.orphans == {(ID, 0)}  # its key is still there

    run(main)


def test_a_change_is_followed_soon_and_many_at_once() -> None:
    async def main(stage: Stage) -> None:
        stage.put()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.views.run)
            nursery.start_soon(stage.views.run_following)
            await trio.sleep(1)
            before = len(stage.followed)
            for number in range(10):
                stage.lead(0, "n1", number)
            assert await stage.views.wait_for(
                led_in(9),
                0.1,
            )
            await trio.sleep(0.1)
            assert len(stage.followed) == before + 1
            assert not await stage.views.wait_for(lambda view: False, 1.0)
            nursery.cancel_scope.cancel()

    run(main)


def test_the_first_change_after_a_while_is_read_at_once() -> None:
    async def main(stage: Stage) -> None:
        stage.put()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.views.run)
            await trio.sleep(1)
            stage.lead(0, "n1", 5)
            known = await stage.views.wait_for(
                led_in(5),
                TOGETHER_S,
            )
            assert known
            nursery.cancel_scope.cancel()

    run(main)


def test_after_a_long_outage_changes_are_read_as_soon_as_ever() -> None:
    async def main(stage: Stage) -> None:
        stage.put()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.views.run)
            await trio.sleep(1)
            stage.keep.down = True
            stage.views.refresh()
            await trio.sleep(60)
            stage.keep.down = False
            await trio.sleep(3)
            stage.lead(0, "n1", 5)
            known = await stage.views.wait_for(
                led_in(5),
                1.0,
            )
            assert known
            nursery.cancel_scope.cancel()

    run(main)


def test_everything_is_read_anew_now_and_then_and_after_an_error() -> None:
    async def main(stage: Stage) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.views.run)
            nursery.start_soon(stage.views.run_following)
            await trio.sleep(1)
            stage.listed.clear()
            await trio.sleep(WHOLE_EVERY_S)
            assert stage.listed.count(("partitions/", 0)) == 1
            assert stage.followed[-1][1]
            stage.keep.down = True
            stage.views.refresh()
            await trio.sleep(10)
            stage.listed.clear()
            stage.keep.down = False
            await trio.sleep(2)
            assert ("partitions/", 0) in stage.listed
            nursery.cancel_scope.cancel()

    run(main)


def test_what_this_broker_has_stored_is_known_at_once_and_not_forgotten_again() -> None:
    async def main(stage: Stage) -> None:
        stage.put()
        stage.lead(0, "n2", 1)
        await stage.views.now()
        stored = stage.lead(0, "n1", 2)
        stage.views.note({(ID, 0): stored})
        assert stage.views.view.leaderships[ID, 0] == stored
        stage.views.note({(ID, 0): replace(stored, leader="n2", revision=1)})  # old news
        assert stage.views.view.leaderships[ID, 0] == stored
        assert (await stage.views.now()).leaderships[ID, 0] == stored

    run(main)


def test_who_fails_to_follow_tries_again() -> None:
    async def main(stage: Stage) -> None:
        tries: list[float] = []

        async def fail_twice(view: ClusterView, *, whole: bool) -> None:
            tries.append(trio.current_time())
            if len(tries) <= 2:
                raise texts.metadata_unavailable("the store", "planted")

        stage.views.keeper = fail_twice
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.views.run)
            nursery.start_soon(stage.views.run_following)
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        assert len(tries) >= 3
        assert tries[1] - tries[0] >= 0.1

    run(main)


def test_who_must_catch_up_is_told_by_a_view_that_was_read_since() -> None:
    async def main(stage: Stage) -> None:
        views, told = stage.views, list[ClusterView]()
        views.on_caught_up = lambda: told.append(views.view)

        async def follow(view: ClusterView, *, whole: bool) -> None:
            views.stepped_back()

        views.keeper = follow
        stage.put()
        stage.lead(0, "n1")
        stage.keep.delay_mean = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(views.run)
            nursery.start_soon(views.run_following)
            await views.wait_for(led_in(1), 60)
            stage.leaderships_read = trio.Event()
            views.refresh()
            await stage.leaderships_read.wait()
            stage.lead(0, "n2", 2)
            views.catch_up()
            await trio.sleep(60)
            assert [view.leaderships[ID, 0].leader for view in told] == ["n2"]
            views.catch_up()  # with nothing new
            await trio.sleep(60)
            assert len(told) == 2
            nursery.cancel_scope.cancel()

    run(main)


def test_a_reading_that_stood_still_does_not_keep_the_next_one_waiting_for_as_long() -> None:
    async def main(stage: Stage) -> None:
        stage.put()
        stage.lead(0, "n1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.views.run)
            await trio.sleep(1)
            stage.leaderships_read = trio.Event()
            stage.keep.delay_mean = 20.0
            stage.views.refresh()
            await stage.leaderships_read.wait()
            stage.keep.delay_mean = 0.0
            stage.lead(0, "n1", 5)
            stage.views.refresh()
            record = BrokerRecord("n1", {}, None, "east", "1.0", 0, "d1")
            stage.keep.transact([], {record.key: record.to_json()}, [], None)
            assert await stage.views.wait_for(lambda view: "n1" in view.brokers, 200)
            assert not led_in(5)(stage.views.view)
            assert await stage.views.wait_for(led_in(5), TOGETHER_MAX_S + 0.1)
            nursery.cancel_scope.cancel()

    run(main)
