"""The heartbeat thread: it outlives what the loop does, and nothing outlives it."""

import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import anyio
import pytest

import tailrace
from tailrace.client import loop_watch
from tailrace.client.heart_seat import Seat
from tailrace.client.member import Member, MemberOptions
from tailrace.protocol.errors import ConnectError
from tailrace.protocol.shapes import TopicPartition
from tailrace.testing import Broker
from tests.client.group_listener import ALL, Listening, member, settle
from tests.client.world import Run, until

NAME = "tailrace.heart"


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def script(body: str) -> list[str]:
    return [sys.executable, "-W", "error", "-c", textwrap.dedent(body)]


def test_one_thread_serves_all_members_of_a_client_and_ends_with_the_last(
    run: Run, shop: Broker
) -> None:
    async def main() -> None:
        async with tailrace.connect(shop.url) as client:
            assert threads() == []
            members: list[Member] = []
            for group in ("a", "b", "c"):
                listening = Listening()
                options = MemberOptions(group, ("orders",), commit_interval=None)
                listening.member = Member(client, options, listening)
                await listening.member.join()
                members.append(listening.member)
                assert len(threads()) == 1
            assert threads()[0].daemon
            for one in members:
                assert len(threads()) == 1
                await one.leave()
            await until(lambda: threads() == [])

    run(main)


def test_thread_ends_with_a_client_that_was_not_closed_well(run: Run, shop: Broker) -> None:
    async def main() -> None:
        listening = Listening()
        with anyio.CancelScope() as scope:
            async with tailrace.connect(shop.url) as client:
                options = MemberOptions("crashed", ("orders",), commit_interval=None)
                listening.member = Member(client, options, listening)
                await listening.member.join()
                scope.cancel()
        await until(lambda: threads() == [])
        async with member(shop.url, "crashed", "orders") as other:
            await until(lambda: other.has == ALL)  # at once: it said goodbye all the same

    run(main)


def test_bug_in_the_thread_ends_the_client_and_is_raised(
    run: Run, shop: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with tailrace.connect(shop.url) as client:
            options = MemberOptions("bug", ("orders",), close_timeout=0.1)
            one = Member(client, options, Listening())
            await one.join()

            def step(self: Seat, now: float) -> None:
                raise ZeroDivisionError

            monkeypatch.setattr(Seat, "step", step)
            try:
                await anyio.sleep(4)
            finally:
                await one.leave()

    with pytest.raises(ZeroDivisionError):
        run(main)
    for thread in threads():
        thread.join(5)
    assert threads() == []


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        (
            "socket.socketpair",
            OSError(errno.EMFILE, "Too many open files"),
            "T001: group 'short' cannot be joined: too many open files. Raise the limit",
        ),
        (
            "threading.Thread.start",
            RuntimeError("can't start new thread"),
            "T001: group 'short' cannot be joined: can't start new thread. Raise the limit",
        ),
    ],
)
def test_what_keeps_the_thread_from_starting_is_named_and_leaves_nothing_behind(
    run: Run,
    shop: Broker,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    error: Exception,
    says: str,
) -> None:
    def fail(*args: object) -> None:
        raise error

    async def main() -> None:
        async with tailrace.connect(shop.url) as client:
            listening = Listening()
            listening.member = Member(client, MemberOptions("short", ("orders",)), listening)
            await listening.member.coordinator.address(timeout=1)
            open_before = len(os.listdir("/proc/self/fd"))
            with monkeypatch.context() as short:
                short.setattr(f"tailrace.client.heart_thread.{what}", fail)
                with pytest.raises(ConnectError) as caught:
                    await listening.member.join()
            assert str(caught.value).startswith(says)
            assert len(os.listdir("/proc/self/fd")) == open_before
            assert threads() == []
            await listening.member.join()
            await until(lambda: listening.has == ALL)
            await listening.member.leave()

    run(main)


@pytest.mark.provokes("T050")
@pytest.mark.slow
def test_blocked_loop_costs_no_session_and_is_named_while_it_is_blocked(
    run: Run, shop: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with member(shop.url, "blocked", "orders", session_timeout=1.0) as one:
            await until(lambda: one.has == ALL)
            time.sleep(2.5)  # noqa: ASYNC251 that is the point
            in_time = [record for record in caplog.records if "T050" in record.getMessage()]
            assert len(in_time) == 1
            await anyio.sleep(0.4)
            assert one.losses == []
            assert [rebalance.reason for rebalance in one.rebalances] == ["member joined"]

    caplog.set_level(logging.INFO, "tailrace.client")
    run(main)
    assert f"in {__file__}:" in caplog.text
    assert " main()." in caplog.text
    assert "the event loop runs again" in caplog.text


@pytest.mark.slow
def test_stopped_process_comes_back_fenced_and_joins_again(shop: Broker) -> None:
    body = f"""
        import anyio, sys
        sys.path.insert(0, {os.getcwd()!r})
        from tests.client.group_listener import member
        from tests.client.world import until

        async def main():
            async with member({shop.url!r}, "paused", "orders", session_timeout=1.0) as one:
                await until(lambda: len(one.has) == 4)
                print("joined", flush=True)
                await until(lambda: bool(one.losses))
                print("lost", *one.losses, flush=True)
                await until(lambda: bool(one.has))
                print("again", flush=True)
                await anyio.sleep(20)

        anyio.run(main)
    """
    with subprocess.Popen(script(body), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None

        async def main() -> None:
            async with member(shop.url, "paused", "orders", session_timeout=1.0) as two:
                os.kill(process.pid, signal.SIGSTOP)
                await until(lambda: two.has == ALL)
                await settle(two)
                os.kill(process.pid, signal.SIGCONT)
                await until(lambda: len(two.has) == 2)

        try:
            assert process.stdout.readline() == "joined\n"
            anyio.run(main)
            lost = process.stdout.readline()
            assert lost.startswith("lost ([")
            assert "it was silent" in lost or "not known" in lost
            assert process.stdout.readline() == "again\n"
        finally:
            process.kill()


def test_nothing_keeps_an_interpreter_from_its_end(shop: Broker) -> None:
    body = f"""
        import asyncio, sys, threading
        import tailrace
        from tailrace.client.member import Member, MemberOptions
        sys.path.insert(0, {os.getcwd()!r})
        from tests.client.group_listener import ALL, Listening

        async def main():
            client = await tailrace.connect({shop.url!r}).__aenter__()
            listening = Listening()
            listening.member = Member(client, MemberOptions("left", ("orders",)), listening)
            await listening.member.join()
            assert any(t.name == {NAME!r} for t in threading.enumerate())
            assert "trio" not in sys.modules
            import os
            sys.stdout.flush()
            loop = asyncio.get_running_loop()
            loop.call_soon(sys.exit, 3)
            await asyncio.sleep(5)

        asyncio.run(main())
    """
    began = time.monotonic()
    done = subprocess.run(script(body), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 10


def test_forked_child_has_no_thread_and_harms_nobody(run: Run, shop: Broker) -> None:
    async def main() -> None:
        async with member(shop.url, "forked", "orders", session_timeout=1.5) as one:
            await until(lambda: one.has == ALL)
            child = os.fork()
            if child == 0:
                quiet = threads() == [] and not loop_watch._watched
                one.member.released(TopicPartition("orders", 0))
                os._exit(0 if quiet else 1)
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222 it ends at once
            assert os.waitstatus_to_exitcode(status) == 0
            async with member(shop.url, "forked", "orders", session_timeout=1.5) as two:
                await until(lambda: len(one.has) == len(two.has) == 2)
                assert one.losses == []

    run(main)


def test_importing_tailrace_imports_no_trio() -> None:
    body = """
        import sys
        import tailrace, tailrace.client.heart, tailrace.client.heart_task, tailrace.client.member
        assert "trio" not in sys.modules
    """
    subprocess.run(script(body), check=True, timeout=20)
