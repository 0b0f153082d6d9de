"""``tailrace doctor`` and ``tailrace cluster health --local``: what is wrong, and what to do."""

import socket
from pathlib import Path
from typing import Any

import pytest

from tailrace import cli_doctor_machine as machine
from tailrace.testing import Broker
from tests.cli.conftest import Cli

NAMES = (
    *("python", "extras", "ports", "nofile", "disk_free", "fsync_ms"),
    *("clock_skew", "broker", "http", "metadata"),
)


@pytest.fixture
def local(broker: Broker, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """The configuration of this machine is the test broker's."""
    bind = broker.url.removeprefix("tailrace://")
    monkeypatch.setenv("TAILRACE_LISTENERS__CLIENT__BIND", bind)
    monkeypatch.setenv("TAILRACE_STORAGE__DATA_DIR", f"{tmp_path}/not/yet")


def checks(result: Any) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in result.json()["checks"]}


@pytest.mark.usefixtures("local")
def test_all_is_well(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.cli_doctor_machine.FSYNC_MS_MAX", 10_000)
    result = cli("doctor", "-O", "json")
    assert [check["name"] for check in result.json()["checks"]] == list(NAMES)
    wrong = [check for check in result.json()["checks"] if not check["ok"]]
    assert (result.code, result.json()["ok"], wrong) == (0, True, [])
    text = cli("doctor").out.decode()
    assert [line.split()[:2] for line in text.splitlines()] == [["ok", name] for name in NAMES]


def test_no_broker(offline: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_HTTP__BIND", "127.0.0.1:1")
    result = offline("doctor", "-O", "json")
    assert result.code == 6
    found = checks(result)
    assert tuple(found) == NAMES
    for name in ("broker", "http", "metadata", "clock_skew"):
        assert not found[name]["ok"]
        assert found[name]["fix"]
    assert found["broker"]["fix"].endswith("Start one: tailrace dev")


def test_port_taken_by_somebody_else(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        stranger.settimeout(0)
        monkeypatch.setenv("TAILRACE_LISTENERS__CLIENT__BIND", f"127.0.0.1:{port}")
        found = checks(cli("doctor", "-O", "json"))["ports"]
    assert not found["ok"]
    assert found["value"] == [f"127.0.0.1:{port} (listeners.client.bind)"]
    assert found["detail"] == f"taken: 127.0.0.1:{port} (listeners.client.bind)"


@pytest.mark.parametrize(
    ("key", "name"), [("LISTENERS__CLIENT", "listeners.client"), ("HTTP", "http")]
)
def test_an_address_of_another_machine_is_not_taken(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, key: str, name: str
) -> None:
    monkeypatch.setenv("TAILRACE_SECURITY__ALLOW_INSECURE", "true")
    monkeypatch.setenv(f"TAILRACE_{key}__BIND", "192.0.2.1:7499")
    found = checks(cli("doctor", "-O", "json"))["ports"]
    assert not found["ok"]
    told = f"192.0.2.1:7499 ({name}.bind): Cannot assign requested address"
    assert told in found["detail"]
    fix = f"Set {name}.bind to an address and port that this user may bind."
    assert fix in found["fix"]
    assert "7499 and stop it" not in found["fix"]


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    ("patch", "value", "name"),
    [
        ("tailrace.cli_doctor_machine.NOFILE_MIN", 1 << 60, "nofile"),
        ("tailrace.cli_doctor_machine.FSYNC_MS_MAX", 0.0, "fsync_ms"),
        ("tailrace.cli_doctor.SKEW_SECONDS_MAX", -1.0, "clock_skew"),
        ("tailrace.cli_doctor_machine.EXTRAS", ("trio", "no_such_module"), "extras"),
    ],
)
def test_each_fault_has_its_fix(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, patch: str, value: object, name: str
) -> None:
    monkeypatch.setattr("tailrace.cli_doctor_machine.FSYNC_MS_MAX", 10_000)
    monkeypatch.setattr(patch, value)
    result = cli("doctor", "-O", "json")
    assert result.code == 6
    assert [check for check, found in checks(result).items() if not found["ok"]] == [name]
    assert checks(result)[name]["fix"]


@pytest.mark.usefixtures("local")
def test_too_little_room_is_measured_against_the_configuration(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILRACE_STORAGE__MIN_FREE", "1000TiB")
    found = checks(cli("doctor", "-O", "json"))["disk_free"]
    assert not found["ok"]
    assert found["fix"].endswith("below storage.min_free 1000TiB writes are refused.")


@pytest.mark.usefixtures("local")
def test_a_directory_that_a_broker_left_as_suspect_is_named(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "suspect").touch()
    monkeypatch.setenv("TAILRACE_STORAGE__DATA_DIR", str(tmp_path))
    found = checks(cli("doctor", "-O", "json"))["disk_free"]
    assert not found["ok"]
    assert found["detail"].endswith("marked suspect: the disk failed a sync")


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("there", [True, False])
def test_a_directory_that_cannot_be_written_is_named_with_its_owner(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    def never(folder: Path) -> bool:
        return False

    monkeypatch.setattr("tailrace.cli_doctor_machine.usable", never)
    folder = tmp_path / "data"
    if there:
        folder.mkdir()
    monkeypatch.setenv("TAILRACE_STORAGE__DATA_DIR", str(folder))
    found = checks(cli("doctor", "-O", "json"))
    assert not found["disk_free"]["ok"]
    assert ("sudo -u " if there else f"Make {folder}") in found["disk_free"]["fix"]
    assert " is not writable" in found["fsync_ms"]["detail"]


@pytest.mark.parametrize(
    ("mounted", "kind"), [("/", "ext4"), ("/data", "nfs4"), ("/data/a b", "tmpfs")]
)
def test_the_file_system_is_that_of_the_closest_mount(
    monkeypatch: pytest.MonkeyPatch, mounted: str, kind: str
) -> None:
    table = (
        "27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n"
        "28 27 0:30 / /data rw - nfs4 server:/x rw\n"
        "29 28 0:31 / /data/a\\040b rw - tmpfs none rw\n"
    )

    def mounts(path: Path) -> str:
        return table

    monkeypatch.setattr(Path, "read_text", mounts)
    assert machine.file_system(Path(mounted)) == kind
    assert machine.file_system(Path("/database")) == "ext4"


def test_the_broker_of_the_configuration_is_asked(
    offline: Cli, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAILRACE_URL")
    bind = broker.url.removeprefix("tailrace://")
    monkeypatch.setenv("TAILRACE_LISTENERS__CLIENT__BIND", bind)
    assert checks(offline("doctor", "-O", "json"))["broker"]["ok"]


def test_a_wrong_configuration_is_exit_2(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_STORAGE__COLOUR", "red")
    result = cli("doctor")
    assert result.code == 2
    assert "T080" in result.err
