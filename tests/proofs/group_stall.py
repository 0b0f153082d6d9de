"""Handlers that are slow beyond measure, and handlers that block: nobody is evicted for it.

One record's handler sleeps while a steady producer goes on. Asked for: no member goes, nothing is
rebalanced; ``group lag`` says STALLED for that partition, at the offset of that record, and of no
other; afterwards the group goes on where it was, and has processed everything once. Another handler
blocks its event loop for longer than the session: its log names file and line while it blocks.
"""

import asyncio
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tailrace
from tailrace.bench.processes import BrokerProcess
from tests.proofs import group_member
from tests.proofs.group_member import ROOT, Job, MemberProcess
from tests.proofs.steady import Steady

TOPIC, GROUP = "work", "workers"
PARTITIONS = 4
STUCK, BLOCKED = 1, 2
CALM_S = 2.0  # at first: something is committed everywhere
CATCH_UP_SECONDS_MAX = 30.0
VERDICT_SECONDS_MAX = 60.0  # beside the window


@dataclass(frozen=True)
class Plan:
    """How long, in seconds.

    ``commit_interval`` far below ``window_s``: where nothing was committed for a window, that is
    stalled, and a busy machine makes every interval longer.
    """

    sleep_s: float = 600.0  # at least, and until it was called stalled
    block_s: float = 5.0  # 0: nobody blocks
    session_timeout: float = 3.0
    window_s: float = 60.0  # of the verdict
    commit_interval: float = 1.0
    look_every_s: float = 2.0
    members: int = 2


class Watch:
    """What the broker says of the group, compared with how it was."""

    def __init__(self, url: str, client: tailrace.Client) -> None:
        self.looks = 0
        self._url = url
        self._client = client
        self._before: tuple[int, list[str]] | None = None

    async def look(self) -> tailrace.GroupDetail:
        """AssertionError if anybody came or went, or anything was rebalanced."""
        detail = await self._client.admin.describe_group(GROUP)
        now = detail.generation, [member.member_id for member in detail.member_list]
        self._before = self._before or now
        assert now == self._before, f"{self._before} became {now}"
        assert detail.state == "stable"
        self.looks += 1
        return detail

    def table(self) -> str:
        """What ``tailrace group lag`` prints."""
        command = [sys.executable, "-m", "tailrace.cli", "-b", self._url, "group", "lag", GROUP]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


async def sleep(client: tailrace.Client, watch: Watch, plan: Plan, wake: Path) -> None:
    """One handler sleeps, until it has been said of it what is to be said."""
    async with client.producer() as producer:
        stuck = await producer.send(TOPIC, b"sleep", partition=STUCK)
    began = time.monotonic()
    stalled_s, table = 0.0, ""
    ends = began + plan.sleep_s
    gives_up = max(ends, began + plan.window_s + VERDICT_SECONDS_MAX)
    while time.monotonic() < (ends if table else gives_up):
        await asyncio.sleep(plan.look_every_s)
        detail = await watch.look()
        bad = [one for one in detail.partition_list if one.verdict == "stalled"]
        if not bad:
            assert not table, "the verdict took it back"
            continue
        (one,) = bad
        assert (one.partition, one.committed) == (STUCK, stuck.offset), one
        if not table:
            stalled_s = time.monotonic() - began
            table = await asyncio.to_thread(watch.table)
    slept_s = time.monotonic() - began
    wake.touch()  # noqa: ASYNC240  nothing else goes on here
    assert table, "nobody said that it is stalled"
    (row,) = [line for line in table.splitlines() if re.match(rf"{TOPIC} .*stalled$", line)]
    assert row.split()[1:3] == [str(STUCK), f"{stuck.offset:,}"], table
    print(
        f"a handler slept {slept_s:.0f} s in {TOPIC}[{STUCK}]@{stuck.offset}: {watch.looks}"
        f" looks, the same members and generation; STALLED after {stalled_s:.0f} s (window"
        f" {plan.window_s:.0f} s):\n  {' '.join(row.split())}"
    )


async def block(client: tailrace.Client, watch: Watch, plan: Plan, logs: list[Path]) -> None:
    """One handler blocks its loop."""
    async with client.producer() as producer:
        await producer.send(TOPIC, b"block", partition=BLOCKED)
    began = time.time()
    while time.time() < began + plan.block_s + 1:
        await asyncio.sleep(0.2)
        await watch.look()
    place = f"{group_member.__file__}:{blocking_line()} _Member.handle()"
    (line,) = [line for log in logs for line in lines_of(log) if "T050" in line]
    assert place in line, line
    said_after_s = datetime.fromisoformat(line[:23].replace(",", ".")).timestamp() - began
    assert said_after_s < plan.block_s, "it was said too late"
    print(
        f"a handler blocked its loop for {plan.block_s:g} s, of a session of"
        f" {plan.session_timeout:g} s: nobody went; after {said_after_s:.1f} s its log said\n"
        f"  {line[24:]}"
    )


def blocking_line() -> int:
    """Where a member blocks."""
    lines = lines_of(Path(group_member.__file__))
    (number,) = [at for at, line in enumerate(lines, 1) if "time.sleep(self.job" in line]
    return number


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


async def run(url: str, folder: Path, plan: Plan) -> None:
    """Print the figures; AssertionError with what is wrong."""
    async with tailrace.connect(url) as client:
        await client.admin.create_topic(TOPIC, partitions=PARTITIONS)
        with ExitStack() as stack:
            members = [
                stack.enter_context(
                    MemberProcess(
                        Job(
                            *(url, TOPIC, GROUP, name, str(folder), "streams"),
                            session_timeout=plan.session_timeout,
                            commit_interval=plan.commit_interval,
                            sleep_s=plan.sleep_s,
                            block_s=plan.block_s,
                        )
                    )
                )
                for name in "abcdefgh"[: plan.members]
            ]
            await asyncio.gather(*(asyncio.to_thread(one.wait_ready) for one in members))
            producer = Steady(url, TOPIC, PARTITIONS, per_tick=1, count=sys.maxsize)
            sending = asyncio.create_task(producer.run())
            watch = Watch(url, client)
            await asyncio.sleep(CALM_S)
            await sleep(client, watch, plan, folder / group_member.WAKE)
            slept_ms = time.time() * 1000
            if plan.block_s:
                await block(client, watch, plan, [one.log_path for one in members])
            producer.stop.set()
            await sending
            sent = producer.sent + (2 if plan.block_s else 1)
            await judge_records(client, members, sent, slept_ms)
            for one in members:
                await asyncio.to_thread(one.leave)


async def judge_records(
    client: tailrace.Client, members: list[MemberProcess], sent: int, slept_ms: float
) -> None:
    """All were processed, once; and those of other partitions while that one slept."""
    deadline = time.monotonic() + CATCH_UP_SECONDS_MAX
    while (await client.admin.group_lag(GROUP)).lag_records:
        assert time.monotonic() < deadline, "the group does not catch up"
        await asyncio.sleep(0.2)
    notes = [note for one in members for note in one.notes()]
    times = Counter((note.partition, note.offset) for note in notes)
    assert len(times) == sent, f"{sent - len(times)} of {sent} were not processed"
    assert max(times.values()) == 1, "some were processed twice"
    others = [note for note in notes if note.partition != STUCK and note.at_ms < slept_ms]
    print(
        f"{sent:,} records, each processed once; while one slept, those of other partitions waited"
        f" {max(note.at_ms - note.append_ms for note in others):,.0f} ms at most"
    )


def prove(folder: Path, plan: Plan) -> None:
    """Print figures; AssertionError if something is not as it was asked for."""
    settings = {"group.verdict_window": f"{plan.window_s:g}s"}
    with BrokerProcess(folder / "data", settings=settings) as broker:
        asyncio.run(run(broker.url, folder, plan))
