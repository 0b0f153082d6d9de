"""The contract of the metadata store, as tests that any store can be put through.

Use: subclass ``MetadataContract`` in a test file and give it a ``store`` context manager.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from tailrace.broker.metadata import TXN_CHANGES_MAX, MetadataStore


class MetadataContract:
    """Each test gets an empty store; ``run`` runs it on a mock clock."""

    lease_s = 10.0  # where real time passes: long enough for a machine that stands still

    def open(self) -> AbstractAsyncContextManager[MetadataStore]:
        raise NotImplementedError

    def run(self, check: Callable[[MetadataStore], Awaitable[None]]) -> None:
        async def main() -> None:
            async with self.open() as store:
                await check(store)

        trio.run(main, clock=self.clock())

    def clock(self) -> trio.abc.Clock | None:
        return None

    async def pass_seconds(self, seconds: float) -> None:
        """Let the clock that leases go by move on."""
        raise NotImplementedError

    async def outlive(self, store: MetadataStore, lease: int, key: str) -> None:
        """Let a lease end that nobody keeps alive; ``key`` is bound to it."""
        await self.pass_seconds(1.2 * self.lease_s)

    def test_what_was_put_is_read_with_its_revision(self) -> None:
        async def check(store: MetadataStore) -> None:
            first = await store.txn([], {"a/1": b"x", "a/2": b"y"})
            second = await store.txn([], {"a/1": b"z"})
            assert first is not None
            assert second is not None
            assert second > first > 0
            one, two = await store.get("a/1"), await store.get("a/2")
            assert one is not None
            assert (one.value, one.revision) == (b"z", second)
            assert two is not None
            assert (two.value, two.revision) == (b"y", first)
            assert await store.get("a/3") is None

        self.run(check)

    def test_a_list_is_one_prefix_sorted(self) -> None:
        async def check(store: MetadataStore) -> None:
            await store.txn([], {"b/2": b"2", "b/10": b"10", "b": b"0", "c/1": b"", "a/1": b""})
            assert [entry.key for entry in await store.list("b/")] == ["b/10", "b/2"]
            assert [entry.key for entry in await store.list("d/")] == []
            assert len(await store.list("")) == 5

        self.run(check)

    def test_a_list_can_leave_out_what_is_known_by_its_revision(self) -> None:
        async def check(store: MetadataStore) -> None:
            await store.txn([], {"a/1": b"1", "a/2": b"2", "a/3": b"3"})
            known = await store.txn([], {"a/2": b"2+"})
            assert known is not None
            assert await store.list("a/", since=known) == []
            last = await store.txn([], {"a/1": b"1+", "b/1": b""}, ["a/3"])
            assert [entry.key for entry in await store.list("a/", since=known)] == ["a/1"]
            assert [entry.key for entry in await store.list("", since=known)] == ["a/1", "b/1"]
            assert last is not None
            assert await store.list("", since=last) == []

        self.run(check)

    def test_a_transaction_applies_only_if_every_compare_holds(self) -> None:
        async def check(store: MetadataStore) -> None:
            revision = await store.txn([("k", 0)], {"k": b"1"})
            assert revision is not None
            assert await store.txn([("k", 0)], {"k": b"2", "other": b""}) is None
            assert await store.txn([("k", revision), ("missing", 7)], {"k": b"2"}) is None
            entry = await store.get("k")
            assert entry is not None
            assert entry.value == b"1"
            assert await store.get("other") is None
            assert await store.txn([("k", revision), ("missing", 0)], {"k": b"3"}) is not None

        self.run(check)

    def test_puts_and_deletes_of_one_transaction_happen_together(self) -> None:
        async def check(store: MetadataStore) -> None:
            await store.txn([], {"old": b"1"})
            revision = await store.txn([], {"new": b"2"}, ["old", "never there"])
            assert [(e.key, e.revision) for e in await store.list("")] == [("new", revision)]

        self.run(check)

    def test_a_deleted_key_counts_as_absent_and_its_revision_never_returns(self) -> None:
        async def check(store: MetadataStore) -> None:
            first = await store.txn([], {"k": b"1"})
            assert first is not None
            await store.txn([("k", first)], {}, ["k"])
            assert await store.txn([("k", first)], {"k": b"2"}) is None
            again = await store.txn([("k", 0)], {"k": b"2"})
            assert again is not None
            assert again > first

        self.run(check)

    def test_too_many_changes_are_refused(self) -> None:
        async def check(store: MetadataStore) -> None:
            most = {f"k{number:03}": b"" for number in range(TXN_CHANGES_MAX)}
            assert await store.txn([], most) is not None
            with pytest.raises(AssertionError):
                await store.txn([], most, ["one more"])

        self.run(check)

    def test_a_hundred_changes_and_compares_happen_together(self) -> None:
        async def check(store: MetadataStore) -> None:
            old = {f"old{number:02}": b"1" for number in range(TXN_CHANGES_MAX // 2)}
            new = {f"new{number:02}": b"2" for number in range(TXN_CHANGES_MAX // 2)}
            first = await store.txn([], old)
            assert first is not None
            compare = [*((key, first) for key in old), *((key, 0) for key in new)]
            assert await store.txn([*compare[:-1], (compare[-1][0], 7)], new, [*old]) is None
            assert [entry.key for entry in await store.list("")] == sorted(old)
            second = await store.txn(compare, new, [*old])
            assert {(entry.key, entry.revision) for entry in await store.list("")} == {
                (key, second) for key in new
            }

        self.run(check)

    def test_a_long_list_is_of_one_revision(self) -> None:
        """However many pages it takes: first and last key are always changed together."""

        async def check(store: MetadataStore) -> None:
            keys = [f"l/{number:04}" for number in range(1_200)]
            for first in range(0, len(keys), TXN_CHANGES_MAX):
                await store.txn([], dict.fromkeys(keys[first : first + TXN_CHANGES_MAX], b"0"))
            await store.txn([], {keys[0]: b"0", keys[-1]: b"0"})
            done = trio.Event()

            async def change() -> None:
                changes = 0
                while not done.is_set():
                    changes += 1
                    value = b"%d" % changes
                    await store.txn([], {keys[0]: value, keys[-1]: value, "other": value})

            async with trio.open_nursery() as nursery:
                nursery.start_soon(change)
                try:
                    for _ in range(5):
                        found = await store.list("l/")
                        assert [entry.key for entry in found] == keys
                        assert found[0].value == found[-1].value
                        assert found[0].revision == found[-1].revision
                finally:
                    done.set()

        self.run(check)

    def test_of_two_racing_transactions_one_wins(self) -> None:
        async def check(store: MetadataStore) -> None:
            outcomes: list[int | None] = []

            async def race(value: bytes) -> None:
                outcomes.append(await store.txn([("k", 0)], {"k": value}))

            async with trio.open_nursery() as nursery:
                for value in (b"a", b"b", b"c"):
                    nursery.start_soon(race, value)
            assert sum(outcome is not None for outcome in outcomes) == 1

        self.run(check)

    def test_keys_of_a_revoked_lease_vanish(self) -> None:
        async def check(store: MetadataStore) -> None:
            lease = await store.grant(10)
            await store.txn([], {"mine": b""}, lease=lease)
            await store.txn([], {"not mine": b""})
            await store.revoke(lease)
            await store.revoke(lease)
            assert [entry.key for entry in await store.list("")] == ["not mine"]
            assert not await store.keepalive(lease)
            with pytest.raises(KeyError):
                await store.txn([], {"mine": b""}, lease=lease)

        self.run(check)

    def test_a_lease_lives_by_keepalive(self) -> None:
        async def check(store: MetadataStore) -> None:
            lease = await store.grant(self.lease_s)
            await store.txn([], {"mine": b""}, lease=lease)
            for _ in range(3):
                await self.pass_seconds(0.4 * self.lease_s)
                assert await store.keepalive(lease)
            assert await store.get("mine") is not None
            watch = store.watch("mine")
            await self.outlive(store, lease, "mine")
            assert await store.get("mine") is None
            assert not await store.keepalive(lease)
            with pytest.raises(KeyError):
                await store.txn([], {"mine": b""}, lease=lease)
            with trio.fail_after(5):
                await watch.wait()
            watch.close()

        self.run(check)

    def test_a_lease_that_never_was_has_ended(self) -> None:
        async def check(store: MetadataStore) -> None:
            assert not await store.keepalive(12_345)
            await store.revoke(12_345)
            with pytest.raises(KeyError):
                await store.txn([], {"mine": b""}, lease=12_345)
            assert not await store.list("")

        self.run(check)

    def test_a_key_put_again_without_lease_stays(self) -> None:
        async def check(store: MetadataStore) -> None:
            lease = await store.grant(10)
            await store.txn([], {"k": b"leased"}, lease=lease)
            await store.txn([], {"k": b"kept"})
            await store.revoke(lease)
            assert await store.get("k") is not None

        self.run(check)

    def test_a_watch_wakes_after_a_change_below_its_prefix(self) -> None:
        async def check(store: MetadataStore) -> None:
            watch = store.watch("a/")
            await store.txn([], {"a/1": b""})
            with trio.fail_after(5):
                await watch.wait()
            async with trio.open_nursery() as nursery:

                async def change() -> None:
                    await store.txn([], {}, ["a/1"])

                nursery.start_soon(change)
                with trio.fail_after(5):
                    await watch.wait()
            watch.close()
            watch.close()

        self.run(check)


@asynccontextmanager
async def closing(store: MetadataStore) -> AsyncIterator[MetadataStore]:
    """The store, closed at the end."""
    try:
        yield store
    finally:
        await store.aclose()
