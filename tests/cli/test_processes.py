"""What only a process of its own can show: pipes that close, Ctrl-C, terminals, start-up."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import pytest

from tailrace.testing import Broker

TAILRACE = [sys.executable, "-m", "tailrace.cli"]
SECONDS_MAX = 20.0
START_SECONDS_MAX = 0.15  # of help, version and usage errors


@pytest.fixture
def environment(broker: Broker) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "TAILRACE_URL": broker.url}


@contextmanager
def started(
    environment: dict[str, str], *arguments: str, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*TAILRACE, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(descriptor: int, wanted: bytes) -> bytes:
    """What comes until ``wanted`` has come; AssertionError if it does not."""
    text, until = b"", time.monotonic() + SECONDS_MAX
    while wanted not in text:
        readable, _, _ = select.select([descriptor], [], [], until - time.monotonic())
        assert readable, f"{wanted!r} did not come: {text!r}"
        data = os.read(descriptor, 65536)
        assert data, f"ended without {wanted!r}: {text!r}"
        text += data
    return text


def test_head_ends_it_silently(broker: Broker, environment: dict[str, str]) -> None:
    topic = broker.name("long")
    broker.seed(topic, [b"line %d" % number for number in range(50_000)])
    with started(environment, "consume", topic, "-e") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.wait(SECONDS_MAX) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_reader_that_leaves_ends_a_waiting_consumer(
    broker: Broker, environment: dict[str, str]
) -> None:
    topic = broker.name("short")
    broker.seed(topic, [b"only"])
    member = ("consume", topic, "-g", f"g-{topic}")
    for command in (("consume", topic), ("tail", topic, "-f"), member):
        with started(environment, *command) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"only\n"
            process.stdout.close()
            assert process.wait(SECONDS_MAX) == 0
            assert process.stderr is not None
            assert process.stderr.read() == b""


def test_ctrl_c_says_where_to_go_on(broker: Broker, environment: dict[str, str]) -> None:
    topic = broker.name("followed")
    broker.seed(topic, [b"a", b"b", b"c"])
    with started(environment, "consume", topic) as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), b"c\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS_MAX) == 130
        assert process.stderr is not None
        assert process.stderr.read().decode() == f"resume at {topic}:0:3\n"


def test_tail_follows_and_ends_with_ctrl_c(broker: Broker, environment: dict[str, str]) -> None:
    topic = broker.name("tailed")
    broker.seed(topic, [b"1", b"2", b"3"])
    with started(environment, "tail", topic, "-n", "1", "-f") as process:
        assert process.stdout is not None
        assert read_until(process.stdout.fileno(), b"3\n") == b"3\n"
        broker.seed(topic, [b"4"])
        assert read_until(process.stdout.fileno(), b"4\n") == b"4\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS_MAX) == 130
        assert process.stderr is not None
        assert process.stderr.read().decode() == f"resume at {topic}:0:4\n"


def test_ctrl_c_while_producing_sums_up(broker: Broker, environment: dict[str, str]) -> None:
    topic = broker.name("typed")
    broker.create_topic(topic)
    with subprocess.Popen(
        [*TAILRACE, "produce", topic],
        env=environment,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"one\ntwo\n")
        process.stdin.flush()
        assert broker.wait_values(topic, count=2, timeout=SECONDS_MAX) == [b"one", b"two"]
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS_MAX) == 130
        assert process.stderr is not None
        said = process.stderr.read().decode().splitlines()
    assert re.fullmatch(rf"produced 2 records to {topic} in [\d.]+ s: p0@0-1", said[-1])


def test_a_terminal_shows_place_time_and_key(broker: Broker, environment: dict[str, str]) -> None:
    topic = broker.name("shown")
    broker.seed(topic, [b"plain", b"\x1b[2J\xff", b'{"n":1}'], keys=[b"k", None, b""])
    ours, theirs = pty.openpty()
    try:
        with started(environment, "consume", topic, "-n", "3", stdout=theirs) as process:
            shown = read_until(ours, b'{"n":1}').decode().splitlines()
            assert process.wait(SECONDS_MAX) == 0
    finally:
        os.close(ours)
        os.close(theirs)
    clock = r"\d\d:\d\d:\d\d\.\d{3}"
    assert re.fullmatch(rf"p0@0  {clock}  k  plain", shown[0])
    assert re.fullmatch(rf"p0@1  {clock}  -  [\w+/=]+", shown[1])  # bytes: as base64
    assert re.fullmatch(rf'p0@2  {clock}    \{{"n":1\}}', shown[2])


@pytest.mark.parametrize("stdin", ["/dev/null", "closed"])
def test_no_input_is_no_records(broker: Broker, environment: dict[str, str], stdin: str) -> None:
    redirect = "<&-" if stdin == "closed" else f"<{stdin}"
    command = f"{' '.join(TAILRACE)} produce {broker.name('none')} {redirect}"
    done = subprocess.run(
        ["sh", "-c", command], env=environment, capture_output=True, timeout=SECONDS_MAX
    )
    if stdin == "closed":
        assert done.returncode == 2
        assert b"stdin is closed" in done.stderr
    else:
        assert done.returncode == 0
        assert b"produced 0 records" in done.stderr


def imported(environment: dict[str, str], *arguments: str) -> set[str]:
    """The packages a command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tailrace.cli", *arguments],
        env=environment,
        capture_output=True,
        timeout=SECONDS_MAX,
    )
    lines = done.stderr.decode().splitlines()
    names = [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")]
    return {name.split(".")[0] for name in names} | {".".join(n.split(".")[:2]) for n in names}


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (("--help",), {"trio", "rich", "anyio", "asyncio", "msgpack", "msgspec"}),
        (("--version",), {"trio", "rich", "anyio", "asyncio", "msgpack", "msgspec"}),
        (("nope",), {"trio", "rich", "anyio", "asyncio", "msgpack", "msgspec"}),
        (("explain", "T041"), {"trio", "rich", "anyio", "asyncio", "msgspec"}),
        (("topic", "list"), {"trio", "rich", "msgspec", "tailrace.broker", "tailrace.storage"}),
        (("tail", "none"), {"trio", "rich", "msgspec", "tailrace.broker", "tailrace.storage"}),
        (("explain", "none"), {"trio", "rich", "msgspec", "tailrace.broker", "tailrace.storage"}),
    ],
)
def test_commands_import_only_what_they_need(
    environment: dict[str, str], arguments: Sequence[str], heavy: set[str]
) -> None:
    assert not imported(environment, *arguments) & heavy


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("topic", "--nope")])
def test_help_and_usage_errors_answer_at_once(
    environment: dict[str, str], arguments: Sequence[str]
) -> None:
    """Within 150 ms of work, where the bare interpreter takes its usual 20 to start.

    The processor's time is measured, so that others who use the machine do not fail the test.
    """

    def seconds(command: Sequence[str]) -> float:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_utime + usage.ru_stime

    seconds([*TAILRACE, *arguments])  # writes the bytecode
    bare = median(seconds([sys.executable, "-c", "pass"]) for _ in range(5))
    taken = median(seconds([*TAILRACE, *arguments]) for _ in range(5))
    limit = START_SECONDS_MAX * max(1.0, bare / 0.02)
    assert taken < limit, f"{taken:.3f} s, bare {bare:.3f} s"
