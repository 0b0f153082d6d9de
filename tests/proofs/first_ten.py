"""The first ten minutes: what a newcomer does, typed by a program, word for word and timed.

A fresh virtual environment gets the built wheel, real processes run on terminals of their own, and
each row of the table has a limit: seconds of an idle machine. What is quick is done several times
and the median counts, as machines are shared. Before and after each step some reference work is
timed; where the machine is slower at that than an idle one, the limits are longer, three times at
most, and the table says so. ``python -m tests.proofs.first_ten``; exit 1 if a row fails.

It takes the ports 7400 and 7480, as the documentation does, or two others if these are taken.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tailrace.protocol.console import align
from tests.proofs import first_ten_compose, pace
from tests.proofs.newcomer import (
    DEFAULT_PORTS,
    Done,
    Newcomer,
    Stumble,
    Terminal,
    build_wheel,
    from_readme,
)

TIMES = 3  # of what is quick
MEGABYTES_MAX = 15
LOOKS_MAX = 50  # for a commit, which comes each second
AGAIN = 10  # records sent while somebody follows
ELSEWHERE = f"""
import time, tailrace.sync
with tailrace.sync.connect() as client, client.producer(value="json") as producer:
    for number in range({AGAIN}):
        producer.send("hello", {{"again": number}})
        print(time.monotonic(), flush=True)
        time.sleep(0.1)
"""
REBALANCED = r"^rebalanced: hello\[0\] -> app\.py-{} \({}\), [\d,]+ ms$"
RECORD = r"^0 (\d+) \{{{}\}}$"
CHECKS = "python extras ports nofile disk_free fsync_ms clock_skew broker http metadata"
Parts = list[tuple[str, float]]


@dataclass(frozen=True)
class Row:
    """One line of the table. ``parts``: where the time went, if too much of it did.

    ``allowance``: how many times its limit it may take, as the machine is slow.
    """

    t: str
    what: str
    seconds: float
    limit_s: float
    note: str = ""
    parts: Callable[[], Parts] = list[tuple[str, float]]
    allowance: float = 1.0

    @property
    def ok(self) -> bool:
        return self.seconds <= self.limit_s * self.allowance

    @property
    def limit(self) -> str:
        times = f" x {self.allowance:.1f}" if self.allowance > 1.0 else ""
        return f"{self.limit_s:g} s{times}"


class Skipped(Exception):
    """A row that this machine cannot play."""

    def __init__(self, t: str, reason: str) -> None:
        super().__init__(f"{t}: {reason}")
        self.t, self.reason = t, reason


class Walk:
    """The rows, in their order; what one starts, the next ones use."""

    def __init__(self, folder: Path, opened: contextlib.ExitStack) -> None:
        self.folder = folder
        self.wheel = build_wheel(folder)
        self.newcomer = Newcomer(folder)
        self.newcomer.make_environment()
        self.produced = 0
        self._opened = opened
        self._dev: Terminal | None = None
        self._app: Terminal | None = None

    def steps(self) -> Iterator[Callable[[], Iterator[Row]]]:
        """In this order. A Stumble ends one of them, not the walk."""
        yield from (self.install, self.dev, self.produce, self.tail, self.http, self.app)
        yield from (self.outage, self.second_app, self.bench, self.test, self.failover)
        yield from (self.compose, self.finding_out)

    # ── 0:00 to 2:00 ─────────────────────────────────────────────────────────────────────────

    def install(self) -> Iterator[Row]:
        """The size is that of all wheels; pip is told to take nothing that needs a compiler."""
        done = self._type(f"pip install '{self.wheel}[server]'", out=".*", err=".*")
        wheels = self.folder / "wheels"
        only = "--quiet --only-binary :all:"
        fetch = f"pip download {only} --dest {wheels} '{self.wheel}[server]'"
        again = self._type(fetch, ".*", ".*").seconds
        size = sum(path.stat().st_size for path in wheels.iterdir()) / 1e6
        if size >= MEGABYTES_MAX:
            biggest = sorted(wheels.iterdir(), key=lambda path: -path.stat().st_size)[:3]
            names = ", ".join(path.name for path in biggest)
            raise Stumble(f"{size:.1f} MB of wheels, most of it {names}")
        note = f"{size:.1f} of {MEGABYTES_MAX} MB, wheels only"

        def parts() -> Parts:
            return [("CPU", done.cpu_seconds), ("fetching the same once more", again)]

        yield Row("0:00", "pip install 'tailrace[server]'", done.seconds, 20, note, parts)

    def dev(self) -> Iterator[Row]:
        taken: list[float] = []
        for _ in range(TIMES):
            if self._dev is not None:
                self._stop_dev()
                shutil.rmtree(self.newcomer.home / ".tailrace")  # "delete to reset"
            taken.append(self._start_dev())
        yield Row("0:30", "tailrace dev", *self._judge(taken, 1.0, "tailrace dev --help"))

    def produce(self) -> Iterator[Row]:
        created = r"created topic hello \(1 partition, auto-create\)\n"
        taken = [self._produce(1, created), *(self._produce(1) for _ in range(TIMES - 1))]
        yield Row("1:00", "tailrace produce hello", *self._judge(taken, 1.0, "tailrace --version"))

    def tail(self) -> Iterator[Row]:
        """Acknowledgements and lines are stamped by one clock, that of the machine."""
        taken: list[float] = []
        for _ in range(TIMES):
            with Terminal(self.newcomer, "tailrace", "tail", "hello", "-f") as tail:
                line = r"^p0@{}  \d\d:\d\d:\d\d\.\d{{3}}  -  "
                _, at = tail.wait(line.format(0) + r'\{"n":1\}$')
                taken.append(at - tail.began)
                offset = self.produced
                self._produce(2)
                tail.wait(line.format(offset) + r'\{"n":2\}$')
                if len(taken) == TIMES:
                    yield Row("1:20", "tailrace tail hello -f: the first record",
                              *self._judge(taken, 1.0, "tailrace --version"))  # fmt: skip
                    yield self._follow(tail, line)
                tail.ctrl_c()

    def _follow(self, tail: Terminal, line: str) -> Row:
        (self.newcomer.home / "elsewhere.py").write_text(ELSEWHERE)
        later: list[float] = []
        with Terminal(self.newcomer, "python", "elsewhere.py") as elsewhere:
            for number in range(AGAIN):
                acked, _ = elsewhere.wait(r"^[\d.]+$")
                _, at = tail.wait(line.format(self.produced) + rf'\{{"again":{number}\}}$')
                later.append(max(0.0, at - float(acked[0])))
                self.produced += 1
            elsewhere.end()
        note = f"median of {AGAIN} after their acks, the last {max(later) * 1000:.0f} ms"
        return Row("1:20", "the next record", statistics.median(later), 0.05, note)

    def http(self) -> Iterator[Row]:
        taken: list[float] = []
        for _ in range(TIMES):
            connection = http.client.HTTPConnection("127.0.0.1", self.newcomer.ports[1], timeout=10)
            with contextlib.closing(connection):
                began = time.monotonic()
                connection.request("GET", "/api/v1/topics/hello/records?partition=0&offset=0")
                answer = connection.getresponse()
                body = answer.read()
                taken.append(time.monotonic() - began)
            if answer.status != 200:
                raise Stumble(f"GET .../records is answered with {answer.status}: {body[:200]!r}")
            records = json.loads(body)["records"]
            places = [(r["topic"], r["partition"], r["offset"]) for r in records]
            if places != [("hello", 0, offset) for offset in range(self.produced)]:
                raise Stumble(f"not the {self.produced} records, but {places}")
            if records[0]["value"] != {"n": 1}:
                raise Stumble(f"not the record that was sent: {records[0]}")
        yield Row("2:00", "curl .../topics/hello/records", *self._judge(taken, 0.2))

    # ── 3:00 to 5:00 ─────────────────────────────────────────────────────────────────────────

    def app(self) -> Iterator[Row]:
        (self.newcomer.home / "app.py").write_text(from_readme("import asyncio"))
        app = self._app = self._open("python", "app.py")
        _, joined = app.wait(REBALANCED.format(app.pid, "member joined"))
        told = r"^T073: group 'app' has no commits; starting at hello\[0\]@0\.$"
        _, told_at = app.wait(told)
        for offset in range(self.produced):
            match, _ = app.wait(RECORD.format(".*"))
            if int(match[1]) != offset:
                raise Stumble(f"app.py went on with offset {match[1]}, not {offset}")
        _, at = app.wait(RECORD.format("'n': 2"))
        self.produced += 1

        def parts() -> Parts:
            return [("joined", joined - app.began), ("T073", told_at - app.began)]

        yield Row("3:00", "python app.py", at - app.began, 2, "once", parts)

    def outage(self) -> Iterator[Row]:
        """From Ctrl-C to a record of the new broker in the old app.py."""
        app = self._app
        if app is None or self._dev is None:
            raise Stumble("there is no app.py, or no broker, to go on")
        committed = self._committed()
        mark, began = len(app.text), time.monotonic()
        self._stop_dev()
        stopped = time.monotonic()
        address = rf"127\.0\.0\.1:{self.newcomer.ports[0]}"
        app.wait(rf"^reconnecting {address} \(connection refused\), attempt 2, next in 0\.[234] s$")
        self._start_dev()
        ready = time.monotonic()
        self._produce(3)
        sent = time.monotonic()
        _, at = app.wait(RECORD.format("'n': 3"))
        came = [int(offset) for offset in re.findall(RECORD.format(".*"), app.text[mark:], re.M)]
        if min(came) < committed:
            raise Stumble(f"{committed} was committed, but offsets {came} came afterwards")

        def parts() -> Parts:
            return [("stopped", stopped - began), ("ready", ready - began), ("sent", sent - began)]

        note = f"committed: {committed}, came: {', '.join(map(str, came))}"
        yield Row("4:00", "Ctrl-C on dev, dev again; app.py goes on", at - began, 5, note, parts)

    def second_app(self) -> Iterator[Row]:
        first = self._app
        if first is None:
            raise Stumble("there is no first app.py")
        idle = r"^T071: member 'app\.py-{}' of group 'app' is idle: 1 partitions for 2 members\. "
        taken: list[float] = []
        for number in range(TIMES):
            with Terminal(self.newcomer, "python", "app.py") as second:
                joined = REBALANCED.format(first.pid, "member joined")
                _, theirs = second.wait(joined)
                _, told = second.wait(idle.format(second.pid) + r"Stop a member\.$")
                _, ours = first.wait(joined)
                self.produced += 1  # the second one has sent one, too
                taken.append(max(theirs, told, ours) - second.began)
                if number == TIMES - 1:
                    yield Row("5:00", "a second app.py: member joined, T071",
                              *self._judge(taken, 1.0, "python -c 'import tailrace'"))  # fmt: skip
                    yield self._describe(first, second)
                second.ctrl_c()
            first.wait(REBALANCED.format(first.pid, "member left"))
        first.ctrl_c()

    def _describe(self, first: Terminal, second: Terminal) -> Row:
        member = r"\S+ +app\.py-{} .* {}\n"
        said = r"app  stable  2 members  generation \d+  lag \d+ .*MEMBER .*"
        rows = [member.format(first.pid, "hello:0"), member.format(second.pid, "idle")]
        said += rf"({rows[0]}{rows[1]}|{rows[1]}{rows[0]})TOPIC .*\nhello +0 .*\n"
        taken = [self._type("tailrace group describe app", said).seconds for _ in range(TIMES)]
        judged = self._judge(taken, 1.0, "tailrace --version")
        return Row("5:00", "tailrace group describe app", *judged)

    # ── 6:00 to 10:00 ────────────────────────────────────────────────────────────────────────

    def bench(self) -> Iterator[Row]:
        with Terminal(self.newcomer, "tailrace", "bench", "e2e", "-n", "100k") as bench:
            bench.wait(r"e2e .*━.* \d+%")
            rate, _ = bench.wait(r"^e2e  ([\d,]+ records/s)  .*\(100,000 x 100 B\)$", seconds=90)
            figures, _ = bench.wait(r"^p50 +p90 +p99 +p999 +max *\n(.*)$")
            code = bench.end()
            seconds = time.monotonic() - bench.began
        if code:
            raise Stumble(f"the bench ended with {code}")
        p99 = re.split(r" {2,}", figures[1])[2]
        yield Row("6:00", "tailrace bench e2e -n 100k", seconds, 30, f"{rate[1]}, p99 {p99}")

    def test(self) -> Iterator[Row]:
        self._type("pip install pytest", ".*", ".*")
        (self.newcomer.home / "test_orders.py").write_text(
            from_readme("def test_orders_are_counted")
        )
        taken = [
            self._type("pytest -q", r".*\n1 passed in [\d.]+s\n").seconds for _ in range(TIMES)
        ]
        steps = ("pytest --version", "python -c 'import tailrace.testing.broker'", "pytest -q")
        yield Row("7:00", "pytest -q", *self._judge(taken, 1.0, *steps))

    def failover(self) -> Iterator[Row]:
        """A leader is killed with records on their way; the test asserts that none is lost."""
        (self.newcomer.home / "test_failover.py").write_text(
            from_readme("def test_no_order_is_lost")
        )
        command = "pytest -q test_failover.py"
        said = r".*\n1 passed in [\d.]+s\n"
        taken = [self._type(command, said).seconds for _ in range(TIMES)]
        steps = ("pytest --version", "python -c 'import tailrace.testing.cluster'")
        yield Row("8:00", command, *self._judge(taken, 15.0, *steps))

    def compose(self) -> Iterator[Row]:
        """The image is built before; all that is measured is what the cluster itself takes."""
        if reason := first_ten_compose.reason_to_skip():
            raise Skipped("9:00", reason)
        ninth = first_ten_compose.Ninth(self.newcomer)
        with ninth.up() as seconds:
            yield Row("9:00", "docker compose up -d --wait; tailrace cluster health", seconds, 15)
            again = ninth.kill()
            note = f"of {ninth.leader}, which led; until what it led was acknowledged again"
            yield Row("9:00", "docker kill", again, 15, note)

    def finding_out(self) -> Iterator[Row]:
        taken: list[float] = []
        for _ in range(TIMES):
            doctor = self._type("tailrace doctor", ".*", codes=(0, 6))
            checks = re.findall(r"^(ok|NOT OK) +(\S+)  .+$", doctor.out, re.M)
            fixes = re.findall(r"^fix (\S+): .+$", doctor.out, re.M)
            if [name for _, name in checks] != CHECKS.split():
                raise Stumble(f"tailrace doctor printed\n{doctor.out}")
            if without := [name for ok, name in checks if ok != "ok" and name not in fixes]:
                raise Stumble(f"no fix for {without}:\n{doctor.out}")
            told = "T041  OffsetOutOfRange .*\n\nCause .*\nFix .*\nExample  T041: .*"
            taken.append(doctor.seconds + self._type("tailrace explain T041", told).seconds)
        note = f"fixes told: {', '.join(fixes) or 'none needed'}"
        judged = self._judge(taken, 3.0, "tailrace doctor", "tailrace explain T041")
        yield Row("10:00", "tailrace doctor; tailrace explain T041", *judged[:2], note, judged[3])

    # ── what several rows do ─────────────────────────────────────────────────────────────────

    def _type(self, command: str, out: str, err: str = "", codes: tuple[int, ...] = (0,)) -> Done:
        return self.newcomer.type(command).expect(out, err, codes)

    def _produce(self, number: int, created: str = "") -> float:
        """Seconds of one more record by the command line."""
        command = f"echo '{{\"n\":{number}}}' | tailrace produce hello"
        said = created + rf"produced 1 record to hello: p0@{self.produced}\n"
        self.produced += 1
        return self._type(command, "", said).seconds

    def _committed(self) -> int:
        """Of the group, as soon as it has committed all there is."""
        for _ in range(LOOKS_MAX):
            lag = json.loads(self._type("tailrace group lag app -O json", ".*").out)
            if lag["lag_records"] == 0:
                committed: int = lag["partition_list"][0]["committed"]
                return committed
        raise Stumble(f"app.py has read everything, but its group has not committed it: {lag}")

    def _start_dev(self) -> float:
        """Seconds until it has said all that is promised, and that on stderr."""
        port, http_port = self.newcomer.ports
        there = "" if port == DEFAULT_PORTS[0] else rf"-b 127\.0\.0\.1:{port} "
        stdout = self.folder / "dev.out"
        dev = self._dev = self._open("tailrace", "dev", stdout=stdout)
        _, at = dev.wait(
            rf"^broker ready tailrace://127\.0\.0\.1:{port}, http http://127\.0\.0\.1:{http_port}, "
            r"data \./\.tailrace \(delete to reset\), Ctrl-C to stop\n"
            rf"try: tailrace {there}produce hello$"
        )
        if stdout.read_bytes():
            raise Stumble(f"on stdout: {stdout.read_text()}")
        return at - dev.began

    def _stop_dev(self) -> None:
        assert self._dev is not None
        if code := self._dev.ctrl_c():
            raise Stumble(f"tailrace dev ended with {code} after Ctrl-C:\n{self._dev.text}")

    def _open(self, *command: str, stdout: Path | None = None) -> Terminal:
        """A terminal for as long as the walk lasts."""
        return self._opened.enter_context(Terminal(self.newcomer, *command, stdout=stdout))

    def _judge(
        self, taken: list[float], limit_s: float, *steps: str
    ) -> tuple[float, float, str, Callable[[], Parts]]:
        """The median; if that is too long, what Python itself and each of ``steps`` takes."""

        def parts() -> Parts:
            done = [self.newcomer.type(command) for command in ("python -c pass", *steps)]
            return [(f"`{one.command}` (CPU {one.cpu_seconds:.3f} s)", one.seconds) for one in done]

        each = ", ".join(f"{seconds:.3f}" for seconds in taken)
        return statistics.median(taken), limit_s, f"median of {each}", parts


class Table:
    """What has come of each step, as it is printed, and what to say of it at the end."""

    def __init__(self) -> None:
        self._lines = [("T", "WHAT", "MEASURED", "LIMIT", "OK", "")]
        self.trouble: list[str] = []

    def play(self, step: Callable[[], Iterator[Row]], before_s: float) -> float:
        """All rows of one step, and why no more came. Seconds of the reference work, afterwards."""
        rows: list[Row] = []
        why: Skipped | Stumble | None = None
        try:
            rows.extend(step())
        except (Skipped, Stumble) as error:
            why = error
        after_s = pace.measure()
        for row in rows:
            self._add(replace(row, allowance=pace.allowance(max(before_s, after_s))))
        if isinstance(why, Skipped):
            self._lines.append((why.t, step.__name__, "-", "-", "skipped", why.reason))
            print(f"{why.t:>5}  {step.__name__}: skipped: {why.reason}", flush=True)
        elif why is not None:
            self.trouble.append(f"{step.__name__}: {why}")
            self._lines.append(("", step.__name__, "-", "-", "NOT OK", "see below"))
        return after_s

    def _add(self, row: Row) -> None:
        took, ok = f"{row.seconds:.3f} s", "ok" if row.ok else "NOT OK"
        self._lines.append((row.t, row.what, took, row.limit, ok, row.note))
        print(f"{row.t:>5}  {row.what}: {took}", flush=True)
        if not row.ok:
            parts = ", ".join(f"{name} {part:.3f} s" for name, part in row.parts())
            self.trouble.append(f"{row.t} took {took} of {row.limit}: {parts}")

    def __str__(self) -> str:
        return "\n".join([align(self._lines), *(["", *self.trouble] if self.trouble else [])])


def main() -> int:
    """Print the table; 0 if every row is within its limit."""
    table = Table()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="first-ten-") as folder,
        contextlib.ExitStack() as opened,
    ):
        walk = Walk(Path(folder), opened)
        if walk.newcomer.ports != DEFAULT_PORTS:
            ports = " and ".join(map(str, walk.newcomer.ports))
            print(f"7400 or 7480 is taken: using {ports} instead", flush=True)
        paces = [pace.measure()]
        for step in walk.steps():
            paces.append(table.play(step, paces[-1]))
    print(f"\n{table}\n\n{pace.describe(max(paces))}")
    took, load = time.monotonic() - began, os.getloadavg()[0]
    print(f"{'not ' if table.trouble else ''}within the limits; {took:.0f} s in all, ", end="")
    print(f"load {load:.1f} on {os.cpu_count()} cores")
    return 1 if table.trouble else 0


if __name__ == "__main__":
    sys.exit(main())
