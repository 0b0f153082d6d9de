"""A broker as a real process: ready lines, signals, exit codes, systemd."""

import errno
import io
import json
import os
import re
import select
import signal
import socket
import ssl
import time
import urllib.request
from pathlib import Path

import pytest
import trio

import tailrace
from tailrace.broker import process
from tailrace.broker.cli import run_broker
from tailrace.broker.config import Sources, from_mapping
from tailrace.broker.groups import first_of
from tailrace.broker.health import Health
from tailrace.broker.logs import LogHandler, as_json
from tailrace.broker.metrics import Metrics
from tailrace.broker.process import failure_code
from tailrace.protocol.console import Console
from tailrace.protocol.errors import BrokerError, ConfigError, MetadataUnavailable
from tests.broker.brokers import SECONDS_MAX, Broker as Process, Start

pytestmark = pytest.mark.slow


def test_ready_line_tells_where_and_who(start: Start) -> None:
    broker = start(http="127.0.0.1:0")
    ready = broker.ready()
    assert ready.pop("url").startswith("tailrace://[::1]:")
    with urllib.request.urlopen(f"{ready.pop('http')}/readyz") as answer:
        assert json.load(answer)["status"] == "ok"
    pid = broker.process.pid
    assert ready == {"event": "ready", "data_dir": "data", "broker_id": "n1", "pid": pid}
    assert broker.stop() == 0


def test_dev_says_the_two_lines_and_keeps_its_data_here(run: Start, tmp_path: Path) -> None:
    broker = run("dev", "--port", "0", "--http-port", "0")
    deadline = time.monotonic() + SECONDS_MAX
    while "\ntry: " not in broker.stderr() and time.monotonic() < deadline:
        select.select([], [], [], 0.005)
    broker.process.send_signal(signal.SIGINT)
    assert broker.wait() == 0
    said = re.search(
        r"^broker ready tailrace://(127\.0\.0\.1:\d+), http http://127\.0\.0\.1:\d+, data"
        r" \./\.tailrace \(delete to reset\), Ctrl-C to stop\n"
        r"try: tailrace -b \1 produce hello\n",
        broker.stderr(),
        re.MULTILINE,
    )
    assert said, broker.stderr()
    assert (tmp_path / ".tailrace/clean").exists()


def test_memory_directory_is_private_and_gone_at_exit(run: Start) -> None:
    broker = run("-O", "json", "dev", "--port", "0", "--http-port", "0", "--memory")
    directory = Path(broker.ready()["data_dir"])
    assert directory.stat().st_mode & 0o777 == 0o700
    assert broker.stop() == 0
    assert not directory.exists()


def test_data_directory_is_for_its_owner_alone(start: Start, tmp_path: Path) -> None:
    broker = start()
    broker.ready()
    paths = [tmp_path / "data", *(tmp_path / "data").rglob("*")]
    for path in paths:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    lock = (tmp_path / "data/LOCK").read_text()
    assert lock == f"{broker.process.pid} broker n1\n"
    assert broker.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_gracefully_in_stages(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    broker = start()
    broker.ready()
    broker.process.send_signal(number)
    assert broker.wait() == 0
    stages = [line for line in broker.logged() if line["event"] == "broker.stopping"]
    assert [line["stage"] for line in stages] == [
        *("drain", "handover", "finish", "flush", "release"),
    ]
    assert all(isinstance(line["elapsed_ms"], int) for line in stages)
    assert (tmp_path / "data/clean").exists()


def test_second_signal_ends_it_at_once(start: Start, tmp_path: Path) -> None:
    broker = start()
    broker.ready()
    broker.send(signal.SIGTERM, signal.SIGINT)
    assert broker.wait() == 1
    assert "second signal" in broker.wait_logged("broker.forced")["message"]
    assert not (tmp_path / "data/clean").exists()


def test_locked_directory_is_refused_with_its_owner(start: Start) -> None:
    first = start()
    first.ready()
    second = start()
    assert second.wait() == 1
    error = json.loads(second.stderr().splitlines()[-1])["error"]
    assert error["code"] == "T090"
    assert f"is locked by pid {first.process.pid} (broker, broker n1)" in error["message"]
    assert first.stop() == 0


def test_directory_of_another_broker_is_refused(start: Start) -> None:
    first = start()
    first.ready()
    assert first.stop() == 0
    second = start("--set", "broker.id=n2")
    assert second.wait() == 1
    assert '"T091"' in second.stderr()


def test_taken_address_is_exit_1_and_named(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        broker = start("--set", f"listeners.client.bind={address}")
        assert broker.wait() == 1
        assert f"{address} cannot be bound: Address already in use" in broker.stderr()
        assert "or set listeners.client.bind (tailrace dev: --port)." in broker.stderr()
        broker = start(http=address)
        assert broker.wait() == 1
        assert f"{address} cannot be bound: Address already in use" in broker.stderr()
        assert "or set http.bind (tailrace dev: --http-port)." in broker.stderr()


@pytest.mark.parametrize(
    ("arguments", "environ", "code"),
    [
        (("--set", "storage.datadir=/x"), {}, "T080"),
        ((), {"TAILRACE_LIMITS__CONNECTIONS": "many"}, "T082"),
        (("-c", "missing.toml"), {}, "T082"),
        (("--set", "http.bind=0.0.0.0:0"), {}, "T085"),
        (("--set", "cluster.metadata=etcd"), {}, "T082"),
    ],
)
def test_wrong_configuration_is_exit_2(
    start: Start, arguments: tuple[str, ...], environ: dict[str, str], code: str
) -> None:
    broker = start(*arguments, environ=environ)
    assert broker.wait() == 2
    assert json.loads(broker.stderr())["error"]["code"] == code


def test_check_says_whether_it_would_start(start: Start, tmp_path: Path) -> None:
    good = start("--check")
    assert good.ready() == {"ok": True, "errors": []}
    assert good.wait() == 0
    bad = start("--check", "--set", "topic.min_isr=3", "--set", "topic.durability=replicated")
    assert [error["code"] for error in bad.ready()["errors"]] == ["T081", "T083"]
    assert bad.wait() == 2
    assert not (tmp_path / "data").exists()


SEVERAL = ("-O", "json", "dev", "--brokers", "3", "--port", "0", "--http-port", "0")


def several(run: Start) -> tuple[Process, str]:
    """Three brokers in one process, and the URL that names them all."""
    broker = run(*SEVERAL)
    first = broker.ready()
    assert broker.process.stdout is not None
    others = [json.loads(broker.process.stdout.readline()) for _ in range(2)]
    ready = [first, *others]
    assert [one["broker_id"] for one in ready] == ["n1", "n2", "n3"]
    assert [one["data_dir"] for one in ready] == [f"./.tailrace/n{n}" for n in (1, 2, 3)]
    hosts = ",".join(one["url"].removeprefix("tailrace://") for one in ready)
    return broker, f"tailrace://{hosts}"


@pytest.mark.slow
def test_several_brokers_replicate_and_come_back_with_their_data(run: Start) -> None:
    broker, url = several(run)
    with tailrace.sync.connect(url) as client, client.producer() as producer:
        assert client.admin.create_topic("orders").replicas == 3
        producer.send("orders", b"a")
        described = client.admin.describe_cluster()
        assert (len(described.brokers), described.metadata) == (3, "embedded")
    broker.process.kill()
    broker.wait()
    broker, url = several(run)
    with tailrace.sync.connect(url) as client, client.producer() as producer:
        assert producer.send("orders", b"b").offset == 1
    assert broker.stop() == 0


@pytest.mark.slow
def test_directory_of_one_broker_is_not_that_of_several(run: Start, tmp_path: Path) -> None:
    broker, _ = several(run)
    second = run(*SEVERAL)
    assert second.wait() == 1
    assert "T090" in second.stderr()
    assert broker.stop() == 0
    one = run("dev", "--port", "0", "--http-port", "0")
    assert one.wait() == 2
    told = "error: T082: ./.tailrace holds the data of several brokers, and one shall use it."
    assert one.stderr().startswith(told)
    alone = ("--data", "alone", "--port", "0", "--http-port", "0")
    one = run("-O", "json", "dev", *alone)
    one.ready()
    assert one.stop() == 0
    others = run("dev", "--brokers", "2", *alone)
    assert others.wait() == 2
    assert "alone holds the data of one broker, and several shall use it" in others.stderr()


def test_sighup_applies_what_is_dynamic_and_names_the_rest(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "tailrace.toml"
    file.write_text('[log]\nlevel = "info"\n')
    broker = start()
    broker.ready()
    changed = {
        "broker": 'id = "n2"',
        "group": "members_max = 7",
        "http": 'bind = "127.0.0.1:1"',  # given by an option, which wins: not changed
        "limits": "connections = 7\nconnections_per_ip = 7\npartitions_per_topic = 7",
        "log": 'level = "warning"',
        "metrics": "topics_max = 7",
        "storage": 'min_free = "7%"',
    }
    file.write_text("".join(f"[{name}]\n{text}\n" for name, text in changed.items()))
    broker.process.send_signal(signal.SIGHUP)
    broker.wait_logged("config.needs_restart", 7)  # more than five lines alike
    named = broker.lines("config.needs_restart")
    assert [line["key"] for line in named] == [
        *("broker.id", "group.members_max", "limits.connections", "limits.connections_per_ip"),
        *("limits.partitions_per_topic", "metrics.topics_max", "storage.min_free"),
    ]
    assert {line["level"] for line in named} == {"warning"}
    assert broker.wait_logged("config.reread")["applied"] == "log.level"
    assert broker.stop() == 0
    # At level warning the stages of the stop are no longer logged.
    assert not [line for line in broker.logged() if line["event"] == "broker.stopping"]


def test_what_sighup_changed_is_shown_over_http(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "tailrace.toml"
    file.write_text('[log]\nlevel = "info"\n[storage]\nmin_free = "7%"\n')
    broker = start(http="127.0.0.1:0")
    url = broker.ready()["http"]
    file.write_text('[log]\nlevel = "debug"\n[storage]\nmin_free = "8%"\n')
    broker.process.send_signal(signal.SIGHUP)
    broker.wait_logged("config.reread")
    with urllib.request.urlopen(f"{url}/api/v1/config") as answer:
        settings = {one["key"]: one["value"] for one in json.load(answer)["settings"]}
    assert (settings["log.level"], settings["storage.min_free"]) == ("debug", "7%")
    assert broker.stop() == 0


def test_sighup_with_a_broken_file_changes_nothing(start: Start, tmp_path: Path) -> None:
    broker = start()
    broker.ready()
    (tmp_path / "tailrace.toml").write_text("[log]\nlevel = 'loud'\n")
    # The file did not exist at the start, so that none is read: environment and options only.
    broker.process.send_signal(signal.SIGHUP)
    assert broker.wait_logged("config.reread")["applied"] == ""
    assert broker.stop() == 0

    second = start()
    assert second.wait() == 2
    (tmp_path / "tailrace.toml").write_text("[log]\nlevel = 'info'\n")
    third = start()
    third.ready()
    (tmp_path / "tailrace.toml").write_text("[log]\nlevel = 'loud'\n")
    third.process.send_signal(signal.SIGHUP)
    assert third.wait_logged("config.refused")["code"] == "T082"
    assert third.stop() == 0


def test_sigusr1_logs_tasks_and_open_requests(start: Start) -> None:
    broker = start()
    broker.ready()
    broker.process.send_signal(signal.SIGUSR1)
    line = broker.wait_logged("broker.tasks")
    assert any("Process._serve" in task or "Server.run" in task for task in line["tasks"])
    assert any("tailrace.broker.listener:" in task for task in line["tasks"])
    assert line["requests"] == []
    assert broker.stop() == 0


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("T080", 2), ("T082", 2), ("T090", 1), ("T092", 1), ("T093", 7), ("T100", 1)],
)
def test_exit_codes_are_those_of_a_daemon(code: str, exit_code: int) -> None:
    assert failure_code(BrokerError(code, "x")) == exit_code


@pytest.mark.parametrize(
    ("cause", "exit_code"),
    [
        (OSError(errno.EADDRINUSE, "in use"), 1),
        (OSError(errno.ENOSPC, "no room"), 1),
        (OSError(errno.EMFILE, "no descriptors"), 1),
        (OSError(errno.EIO, "a file cannot be read"), 1),
        (socket.gaierror(socket.EAI_AGAIN, "no answer from the name server"), 1),
        (socket.gaierror(socket.EAI_NONAME, "no such name"), 2),
        (OSError(errno.EADDRNOTAVAIL, "not ours"), 2),
        (FileNotFoundError(errno.ENOENT, "no such file"), 2),
        (ssl.SSLError(errno.EIO, "a number of OpenSSL's"), 2),
        (None, 2),
    ],
    ids=repr,
)
def test_what_may_pass_is_no_wrong_configuration(cause: OSError | None, exit_code: int) -> None:
    error = ConfigError("T082", "x")
    error.__cause__ = cause
    assert failure_code(error) == exit_code
    failed = BrokerError("T093", "x")
    failed.__cause__ = cause
    assert failure_code(failed) == 7


def test_a_start_that_finds_no_room_names_the_directory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = from_mapping({"storage.data_dir": str(tmp_path)})

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")  # as from a write: without a name

    monkeypatch.setattr(process, "run", full)
    assert run_broker(Console(), found, Sources(None, {}), lambda ready: None) == 1
    assert capsys.readouterr().err == (
        f"error: T062: {tmp_path}: No space left on device. Check the path and its permissions.\n"
    )


def test_error_with_a_code_wins_over_its_company() -> None:
    coded = ConfigError("T082", "x")
    group = BaseExceptionGroup("", [OSError("a"), ExceptionGroup("", [ValueError(), coded])])
    assert first_of(group) is coded
    other = OSError("b")
    assert first_of(BaseExceptionGroup("", [ExceptionGroup("", [other])])) is other
    assert failure_code(MetadataUnavailable("T100", "x")) == 1


class NeverReady:
    """A server that is still recovering when the signals come."""

    stage = ""

    def __init__(self, *_: object) -> None:
        self.health = Health()
        self.metrics = Metrics(version="0", topics_max=1, clock=time.monotonic)
        self._scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[object]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        with self._scope:
            await trio.sleep_forever()

    def stop(self) -> None:
        """It does not heed it."""

    def open_requests(self) -> list[str]:
        return []

    def kill(self) -> None:
        self._scope.cancel()


def test_two_signals_end_a_broker_that_is_not_ready_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "Server", NeverReady)
    handler = LogHandler(io.StringIO(), broker="n1", render=as_json)
    announced: list[object] = []
    one = process.Process(from_mapping({}), Sources(), announced.append, handler)
    assert trio.run(one.main) == 1
    assert announced == []
