"""A broker's lease: how long it counts, what is done when it is lost. By clocks that go by hand."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tailrace.broker.health import Health
from tailrace.broker.members import BrokerRecord, IdTaken, PeerAddress
from tailrace.broker.metrics import Metrics
from tailrace.broker.registry import Registry
from tailrace.broker.session import MARGIN, Session
from tailrace.protocol.errors import MetadataUnavailable
from tailrace.simulation.chance import seeded
from tailrace.simulation.clock import SimClock
from tailrace.simulation.life import Life
from tailrace.simulation.meta import MetaKeep, SimMeta

TTL_S = 6.0
VALID_S = TTL_S * (1 - MARGIN)


def record(broker: str = "n1", directory: str = "d1") -> BrokerRecord:
    address = PeerAddress(broker, 7400, False)
    return BrokerRecord(broker, {"client": address}, None, None, "1.0", 0, directory)


class Stage:
    """A store, and brokers' sessions with it."""

    def __init__(self) -> None:
        self.keep = MetaKeep(seeded(1, "keep"))
        self.keep.delay_mean = 0.0
        self.asleep_s = 0.0  # what only the clock that leases go by has counted

    def boottime(self) -> float:
        return trio.current_time() + self.asleep_s

    def registry(self, broker: str = "n1") -> Registry:
        metrics = Metrics(version="0", topics_max=10, clock=lambda: 0.0)
        store = SimMeta(self.keep, Life(broker))
        return Registry(store, broker, SimClock(), metrics, Health())

    def session(self, broker: str = "n1", *, timeout_s: float | None = TTL_S) -> Session:
        return Session(
            self.registry(broker), self.boottime, timeout_s=timeout_s, url="http://store:2379"
        )

    @asynccontextmanager
    async def keeping(self, broker: str = "n1") -> AsyncGenerator[Session]:
        """Registered, and kept; whenever it is, who leads is read again at once."""
        session = self.session(broker)
        session.on_registered = session.stepped_back
        await session.register(record(broker))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.keep.run)
            nursery.start_soon(session.run)
            yield session
            nursery.cancel_scope.cancel()


def run(main: Callable[[Stage], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(1_000):
            await main(Stage())

    trio.run(bounded, clock=MockClock(autojump_threshold=0))


def test_it_is_kept_for_as_long_as_the_store_answers() -> None:
    async def main(stage: Stage) -> None:
        async with stage.keeping() as session:
            epoch = session.epoch
            for _ in range(100):
                await trio.sleep(1)
                assert session.valid()
                assert session.remaining_s <= VALID_S
            assert session.epoch == epoch == stage.keep.entries["brokers/n1"].revision

    run(main)


def test_it_counts_from_before_the_last_good_keepalive_was_sent() -> None:
    async def main(stage: Stage) -> None:
        session = stage.session()
        stage.keep.delay_mean = 1e-9
        await session.register(record())
        assert session.remaining_s <= VALID_S
        await trio.sleep(VALID_S + 0.01)
        assert not session.valid()
        assert any(lease.ends_at > trio.current_time() for lease in stage.keep.leases.values())
        with pytest.raises(MetadataUnavailable, match="http://store:2379 unreachable for"):
            session.check()

    run(main)


def test_a_machine_that_was_suspended_takes_no_writes_until_it_has_asked() -> None:
    async def main(stage: Stage) -> None:
        async with stage.keeping() as session:
            await trio.sleep(1)
            stage.asleep_s += 60.0  # the store's machine was not
            stage.keep.end_all_leases()
            assert not session.valid()
            before = session.epoch
            await trio.sleep(TTL_S / 3)
            assert session.valid()
            assert session.epoch > before

    run(main)


def test_while_the_store_is_away_it_is_asked_again_and_people_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main(stage: Stage) -> None:
        async with stage.keeping() as session:
            before = session.epoch
            stage.keep.down = True
            await trio.sleep(VALID_S - 1.0)
            levels = {r.levelname for r in caplog.records if "unreachable" in r.message}
            assert levels == {"WARNING"}
            await trio.sleep(60)
            assert not session.valid()
            assert session.remaining_s == 0.0
            told = [r for r in caplog.records if "unreachable" in r.message]
            assert 10 < len(told) < 40
            assert told[-1].levelname == "ERROR"
            assert "T100: metadata store http://store:2379 unreachable for" in told[-1].message
            stage.keep.down = False
            stage.keep.expire()
            await trio.sleep(2)
            assert session.valid()
            assert session.epoch > before  # the lease had ended: another broker epoch
            assert "answers again" in caplog.records[-1].message

    caplog.set_level(logging.INFO, "tailrace.broker.session")
    run(main)


def test_a_broker_that_is_registered_again_writes_nothing_until_it_knows_who_leads() -> None:
    async def main(stage: Stage) -> None:
        async with stage.keeping() as session:
            assert session.valid(), "it led nothing before"
            told = list[int]()
            session.on_registered = lambda: told.append(session.epoch)
            stage.keep.end_all_leases()  # others are elected now
            await trio.sleep(VALID_S)
            assert told == [session.epoch]
            assert not session.valid(), "its view may be from before"
            assert session.remaining_s == 0.0
            with pytest.raises(MetadataUnavailable, match="who leads was not read again"):
                session.check()
            await trio.sleep(VALID_S)
            assert not session.valid(), "a keepalive tells nothing of who leads"
            session.stepped_back()
            assert session.valid()

    run(main)


def test_a_lease_that_outlived_the_outage_goes_on_in_its_epoch() -> None:
    async def main(stage: Stage) -> None:
        async with stage.keeping() as session:
            before = session.epoch
            for lease in stage.keep.leases.values():
                lease.ttl = 1_000.0
                stage.keep.renew(lease)
            stage.keep.down = True
            await trio.sleep(30)
            assert not session.valid()
            stage.keep.down = False
            await trio.sleep(2)
            assert session.valid()
            assert session.epoch == before

    run(main)


def test_a_registration_that_vanished_is_made_anew() -> None:
    async def main(stage: Stage) -> None:
        async with stage.keeping() as session:
            before, told = session.epoch, list[int]()
            session.on_registered = lambda: told.append(session.epoch)
            stage.keep.transact([], {}, ["brokers/n1"], None)
            session.doubt(None)
            await trio.sleep(0.1)
            assert told == [session.epoch]
            assert session.epoch > before
            session.doubt(session.epoch)  # as it should be: nothing happens
            await trio.sleep(0.1)
            assert len(told) == 1

    run(main)


def test_an_id_that_another_directorys_broker_has_is_not_taken() -> None:
    async def main(stage: Stage) -> None:
        async with stage.keeping():
            other = stage.session()
            with pytest.raises(IdTaken) as caught:
                await other.register(record(directory="d2"))
            assert caught.value.other.where == "n1:7400"
            assert not other.valid()
            again = stage.session()  # a new process on the same directory
            assert await again.register(record()) > 0

    run(main)


def test_who_says_that_it_stops_says_so_again_after_a_lost_lease() -> None:
    async def main(stage: Stage) -> None:
        async with stage.keeping() as session:
            await session.drain()
            assert "draining/n1" in stage.keep.entries
            stage.keep.end_all_leases()
            assert "draining/n1" not in stage.keep.entries
            await trio.sleep(TTL_S)
            assert {"draining/n1", "brokers/n1"} <= stage.keep.entries.keys()
            await session.close()
            assert not session.valid()
            assert not stage.keep.entries
            await trio.sleep(TTL_S)
            assert not stage.keep.entries

    run(main)


def test_a_single_node_has_no_lease_and_is_always_valid() -> None:
    async def main(stage: Stage) -> None:
        session = stage.session(timeout_s=None)
        assert await session.register(record()) == 1
        await session.run()
        stage.asleep_s += 1e9
        assert session.valid()
        assert session.lease is None
        assert session.remaining_s == float("inf")
        await session.drain()
        await session.close()
        assert not stage.keep.entries

    run(main)


def test_broker_whose_lease_has_ended_can_be_stopped() -> None:
    async def main(stage: Stage) -> None:
        session = stage.session()
        await session.register(record())
        stage.keep.end_all_leases()
        await session.drain()
        assert "draining/n1" not in stage.keep.entries
        await session.close()

    run(main)
