"""deploy/tailrace.service, directive by directive, by the emulation of systemd."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.broker.test_failing_disk import failing_sync
from tests.proofs.machine import PROJECT, Machine, reason_to_skip
from tests.proofs.systemd_emulation import Service, Unit, soft_limit

pytestmark = pytest.mark.slow

TAILRACE = "/opt/tailrace/bin/tailrace"


def unit() -> Unit:
    return Unit.read(PROJECT / "deploy/tailrace.service")


def test_the_unit_says_what_the_contract_says() -> None:
    found = unit()
    assert found.get("Type") == "notify"
    assert found.get("TimeoutStopSec") == "30"
    assert found.get("LimitNOFILE") == "65536"
    assert found.get("Restart") == "on-failure"
    assert found.words("RestartPreventExitStatus") == ["2", "7"]
    assert found.seconds("WatchdogSec", 0) > 0


def test_a_directive_that_is_not_emulated_is_refused() -> None:
    with pytest.raises(AssertionError, match="Slice is not emulated"):
        Unit("[Service]\nSlice=x\n")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """With tailrace installed, and a unit whose times are short."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    made = Machine()
    try:
        made.sh("useradd --system --home-dir /var/lib/tailrace --no-create-home tailrace")
        made.install_plainly()
        made.write("/etc/systemd/system/tailrace.service", "".join(lines()))
        yield made
    finally:
        made.close()


def lines() -> Iterator[str]:
    yield (PROJECT / "deploy/tailrace.service").read_text()
    yield "[Service]\nRestartSec=100ms\nWatchdogSec=4\nTimeoutStopSec=10\n"


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    """Running, and stopped afterwards."""
    machine.write("/etc/tailrace/tailrace.toml", "")
    machine.sh("systemctl daemon-reload")
    found = machine.service
    found.start()
    yield found
    found.stop()


def test_the_broker_has_its_user_its_limits_and_its_part_of_the_file_system(
    service: Service, machine: Machine
) -> None:
    process = Path(f"/proc/{service.pid}")
    rows = (process / "status").read_text().splitlines()
    status = {name: text.strip() for name, _, text in (row.partition(":") for row in rows)}
    uid = machine.sh("id -u tailrace").strip()
    assert status["Uid"].split() == [uid] * 4
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == 0
    (limit,) = [row for row in (process / "limits").read_text().splitlines() if "open files" in row]
    assert int(limit.split()[3]) == soft_limit(65_536)
    inside = process / "root"
    with pytest.raises(OSError, match="Read-only file system"):
        (inside / "etc/tailrace/new").touch()
    (inside / "var/lib/tailrace/new").touch()
    (inside / "var/lib/tailrace/new").unlink()
    assert not (inside / "dev/sda").exists()
    assert list((inside / "home").iterdir()) == []
    state = machine.root / "var/lib/tailrace"
    assert state.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in state.rglob("*")} == {0}
    assert service.status.startswith("serving tailrace://127.0.0.1:7400")


def test_a_broker_that_dies_is_back_with_all_that_was_acknowledged(
    service: Service, machine: Machine
) -> None:
    machine.sh(f"{TAILRACE} topic create kept")
    machine.sh(f"{TAILRACE} produce kept --value kept")
    starts = service.starts
    os.kill(service.pid, signal.SIGKILL)
    service.wait("auto-restart", "activating")
    service.wait("active")
    assert service.starts == starts + 1
    assert "kept" in machine.sh(f"{TAILRACE} tail kept -q -n 1 --format '%v'")


def test_a_broker_whose_loop_stands_is_ended_and_back(service: Service) -> None:
    os.kill(service.pid, signal.SIGSTOP)
    hung, starts = service.pid, service.starts
    service.wait("failed", "auto-restart", "activating", seconds=60)
    service.wait("active")
    assert service.starts == starts + 1
    assert service.pid != hung


def test_a_wrong_configuration_is_not_tried_again(service: Service, machine: Machine) -> None:
    service.stop()
    machine.write("/etc/tailrace/tailrace.toml", "[broker]\ncolour = 'red'\n")
    starts = service.starts
    with pytest.raises(AssertionError, match="exit 2"):
        service.start()
    assert (service.state, service.starts) == ("failed", starts + 1)


def test_what_may_pass_is_tried_again(service: Service, machine: Machine) -> None:
    service.stop()
    machine.write("/etc/tailrace/tailrace.toml", '[storage]\ndata_dir = "/var/lib/tailrace/n"\n')
    machine.write("/var/lib/tailrace/n", "a file in the way")
    starts = service.starts
    with pytest.raises(AssertionError):
        service.start()
    (machine.root / "var/lib/tailrace/n").unlink()
    service.wait("active")
    assert service.starts > starts + 1


@pytest.mark.skipif(
    shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace"
)
def test_a_disk_that_fails_a_sync_ends_it_for_good(service: Service, machine: Machine) -> None:
    machine.sh(f"{TAILRACE} topic create failing")
    with failing_sync(service.pid, "fdatasync", 1):
        machine.sh(f"{TAILRACE} --timeout 2s produce failing --value x", check=False)
        service.wait("failed")
    assert service.result == "exit 7"
    assert (machine.root / "var/lib/tailrace/suspect").exists()
    service.stop()
    service.start()  # by hand, when the disk was looked at
    assert not (machine.root / "var/lib/tailrace/suspect").exists()


def test_stop_is_graceful_and_no_restart(service: Service, machine: Machine) -> None:
    pid = service.pid
    service.stop()
    assert (service.state, service.result) == ("inactive", "exit 0")
    assert (machine.root / "var/lib/tailrace/clean").exists()
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        raise AssertionError("it is still there")
