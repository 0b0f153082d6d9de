"""Commits of a member against a real broker: what is stored, what is refused, what waits."""

import math
from dataclasses import replace
from typing import Any

import anyio
import pytest

from tailrace.client.commits import CommitPoint
from tailrace.protocol.errors import (
    ConfigError,
    RequestTimeout,
)
from tailrace.testing import Broker
from tests.client.group_listener import ALL, at, member
from tests.client.world import Run, until

# ── commits ──────────────────────────────────────────────────────────────────────────────────


def test_explicit_commits_only_rise(run: Run, shop: Broker, group: str) -> None:
    async def main() -> None:
        async with member(shop.url, group, "orders") as one:
            await until(lambda: one.has == ALL)
            await one.member.commit({at(0): CommitPoint(5), at(1): CommitPoint(6)}, lower=True)
            assert one.member.known_committed(at(0)) == 5
            assert one.member.last_commit is not None
            with pytest.raises(ConfigError, match="at least 5, which is committed already"):
                await one.member.commit({at(0): CommitPoint(4)}, lower=True)
            await one.member.commit({at(0): CommitPoint(4)}, lower=False)
            found = await one.member.committed([at(0), at(1), at(2)], timeout=1.0)
            assert [c and c.offset for c in found.values()] == [5, 6, None]

    run(main)


def test_commit_keeps_its_metadata_up_to_a_limit(run: Run, shop: Broker, group: str) -> None:
    async def main() -> None:
        async with member(shop.url, group, "orders") as one:
            await until(lambda: one.has == ALL)
            await one.member.commit({at(0): CommitPoint(5)}, "x" * 4_096, lower=True)
            found = (await one.member.committed([at(0)], timeout=1.0))[at(0)]
            assert found is not None
            assert found.metadata == "x" * 4_096
            with pytest.raises(ConfigError, match="4,096"):
                await one.member.commit({at(0): CommitPoint(6)}, "x" * 4_097, lower=True)

    run(main)


def test_progress_is_committed_by_itself_in_one_request_for_all(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"heartbeat": heartbeat, "commit_interval": 0.02}
        async with member(shop.url, group, "orders", **options) as one:
            await until(lambda: one.has == ALL)
            one.points = {at(n): CommitPoint(3) for n in ALL}
            await until(lambda: one.member.last_commit is not None)
            assert {one.member.known_committed(at(n)) for n in ALL} == {3}

    run(main)


def test_progress_is_committed_when_leaving(run: Run, shop: Broker, group: str) -> None:
    async def main() -> None:
        async with member(shop.url, group, "orders") as one:
            await until(lambda: one.has == ALL)
            one.points = {at(2): CommitPoint(9)}
        async with member(shop.url, group, "orders") as two:
            found = (await two.member.committed([at(2)], timeout=1.0))[at(2)]
            assert found is not None
            assert found.offset == 9

    run(main)


def test_commit_without_an_answer_raises_in_time(run: Run, group: str) -> None:
    async def main() -> None:
        with Broker() as broker:
            broker.create_topic("orders", 4)
            async with member(broker.url, group, "orders", close_timeout=0.1) as one:
                await until(lambda: one.has == ALL)
                one.client.options = replace(one.client.options, request_timeout=0.1)
                with broker.faults.black_hole(), pytest.raises(RequestTimeout) as caught:
                    await one.member.commit({at(0): CommitPoint(1)}, lower=True)
                assert caught.value.code == "T034"

    run(main)


def test_committed_waits_through_an_outage(run: Run, group: str) -> None:
    async def main() -> None:
        with Broker() as broker:
            broker.create_topic("orders", 4)
            async with member(broker.url, group, "orders") as one:
                await until(lambda: one.has == ALL)
                await one.member.commit({at(0): CommitPoint(5)}, lower=True)
                await anyio.to_thread.run_sync(broker.stop)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.to_thread.run_sync, broker.start)
                    found = (await one.member.committed([at(0)], timeout=math.inf))[at(0)]
                assert found is not None
                assert found.offset == 5

    run(main)
