"""``tailrace doctor`` as a process, before five real faults: it finds each and names its fix."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import click
import pytest

from tailrace.cli import EXTRAS
from tailrace.cli_doctor_machine import NOFILE_MIN
from tests.broker.brokers import ROOT, Broker

pytestmark = pytest.mark.slow

SECONDS_MAX = 60.0
DOCTOR = (sys.executable, "-m", "tailrace.cli", "doctor", "-O", "json", "--timeout", "5s")
Checks = dict[str, dict[str, Any]]


@pytest.fixture
def address(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose broker is configured to be at free ports."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        ports = [found.getsockname()[1] for found in (one, two)]
    return {
        "TAILRACE_LISTENERS__CLIENT__BIND": f"127.0.0.1:{ports[0]}",
        "TAILRACE_HTTP__BIND": f"127.0.0.1:{ports[1]}",
        "TAILRACE_STORAGE__DATA_DIR": str(tmp_path / "data"),
        "TAILRACE_STORAGE__MIN_FREE": "1B",
    }


@pytest.fixture
def broker(address: dict[str, str], tmp_path: Path) -> Iterator[Broker]:
    """A broker that is as it should be, at that address."""
    made = Broker(tmp_path, "-O", "json", "serve", environ=address)
    made.ready()
    yield made
    made.close()


def diagnose(
    environ: dict[str, str],
    *,
    command: tuple[str, ...] = DOCTOR,
    limit: Callable[[], None] | None = None,
    path: str | None = None,
) -> tuple[int, Checks]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TAILRACE")}
    done = subprocess.run(
        command,
        env=clean | environ | ({} if path is None else {"PYTHONPATH": path}),
        preexec_fn=limit,
        capture_output=True,
        timeout=SECONDS_MAX,
    )
    assert done.stdout, done.stderr.decode()
    return done.returncode, {one["name"]: one for one in json.loads(done.stdout)["checks"]}


def wrong(checks: Checks) -> list[str]:
    """What is not ok, apart from a disk that is slow here anyway."""
    return [name for name, one in checks.items() if not one["ok"] and name != "fsync_ms"]


def test_a_port_that_somebody_else_has(address: dict[str, str]) -> None:
    ports = [bind.rpartition(":")[2] for bind in address.values() if bind.startswith("127")]
    listen = (
        "import socket, sys\n"
        "held = [socket.create_server(('127.0.0.1', int(p))) for p in sys.argv[1:]]\n"
        "print(flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", listen, *ports], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as stranger:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        code, checks = diagnose(address)
        stranger.kill()  # the fix
    found = checks["ports"]
    assert (code, found["ok"]) == (6, False)
    assert found["value"] == [
        f"127.0.0.1:{ports[0]} (listeners.client.bind)",
        f"127.0.0.1:{ports[1]} (http.bind)",
    ]
    for key in ("listeners.client.bind", "http.bind"):
        assert f"(pid {stranger.pid}), or set {key}." in found["fix"]
    assert diagnose(address)[1]["ports"]["ok"]


@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize("hard", [64, None])
def test_64_open_files(address: dict[str, str], hard: int | None) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard or most))

    code, checks = diagnose(address, limit=limit)
    found = checks["nofile"]
    assert (code, wrong(checks), found["value"]) == (6, ["nofile"], 64)
    if hard is not None:
        assert found["fix"].startswith("Raise the hard limit: LimitNOFILE=65536 in the unit,")
        return
    if most != resource.RLIM_INFINITY and most < NOFILE_MIN:
        pytest.skip("the hard limit of this machine is too low to try the fix")
    command, _, where = found["fix"].partition(",")
    assert where.startswith(" in the shell that starts the broker")
    mended = ("sh", "-c", f'{command} && exec "$@"', "sh", *DOCTOR)
    code, checks = diagnose(address, command=mended, limit=limit)
    assert wrong(checks) == []


@pytest.mark.skipif(
    shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace"
)
@pytest.mark.usefixtures("broker")
def test_a_slow_disk(address: dict[str, str], tmp_path: Path) -> None:
    slow = ("strace", "-f", "-o", str(tmp_path / "trace"), "-e", "trace=fsync")
    code, checks = diagnose(
        address, command=(*slow, "-e", "inject=fsync:delay_exit=50000", *DOCTOR)
    )
    found = checks["fsync_ms"]
    assert (code, wrong(checks), found["ok"]) == (6, [], False)
    assert 50 <= found["value"] < 1_000
    assert found["fix"].startswith("Put storage.data_dir on a faster disk")
    assert f"at {tmp_path / 'data'}" in found["detail"]


@pytest.mark.parametrize("seconds", [3600, -90])
def test_a_clock_that_is_wrong(address: dict[str, str], tmp_path: Path, seconds: int) -> None:
    skewed = Broker(tmp_path, "-O", "json", "serve", environ=address, faults=(f"skew={seconds}",))
    try:
        skewed.ready()
        code, checks = diagnose(address)
    finally:
        skewed.close()
    found = checks["clock_skew"]
    assert (code, wrong(checks)) == (6, ["clock_skew"])
    assert found["value"] == pytest.approx(seconds, abs=2)
    side = "ahead of" if seconds > 0 else "behind"
    assert f" s {side} this machine's" in found["detail"]
    assert found["fix"] == "Let NTP set the clock that is wrong: sudo timedatectl set-ntp true."


@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize("missing", [EXTRAS, *((name,) for name in EXTRAS)], ids=len)
def test_a_missing_extra(address: dict[str, str], tmp_path: Path, missing: tuple[str, ...]) -> None:
    installed = tmp_path / "installed"
    installed.mkdir()
    for entry in site_packages().iterdir():
        if entry.name not in missing and not entry.name.endswith(".pth"):
            (installed / entry.name).symlink_to(entry)
    url = f"tailrace://{address['TAILRACE_LISTENERS__CLIENT__BIND']}"
    # -S: nothing but what PYTHONPATH names, and the standard library.
    command = (DOCTOR[0], "-S", *DOCTOR[1:])
    code, checks = diagnose(
        address | {"TAILRACE_URL": url}, command=command, path=f"{ROOT}:{installed}"
    )
    found = checks["extras"]
    assert (code, found["value"], found["fix"]) == (
        6,
        list(missing),
        "pip install 'tailrace[server]'",
    )
    assert "extras" in wrong(checks)
    assert checks["broker"]["ok"], "clients work without it"
    server = [one.replace("-", "_") for one in requires("tailrace") or [] if "server" in one]
    for name in missing:
        assert any(one.startswith(name) for one in server), name


def site_packages() -> Path:
    """Where this interpreter has what it was given."""
    return Path(click.__file__).parent.parent


@pytest.mark.usefixtures("broker")
def test_nothing_is_wrong_with_a_machine_that_is_well(address: dict[str, str]) -> None:
    _, checks = diagnose(address)
    assert wrong(checks) == []


@pytest.mark.usefixtures("broker")
def test_the_limit_that_counts_is_that_of_the_broker_that_runs(address: dict[str, str]) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))  # a usual shell's

    _, checks = diagnose(address, limit=limit)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert (checks["nofile"]["ok"], checks["nofile"]["value"]) == (True, most)
