"""The wheel, the links and the folders agree: a new room cannot be forgotten."""

import re
import tomllib
from pathlib import Path

from tailrace.cli import EXTRAS
from tailrace.protocol.version import VERSION
from tests.test_floorplan import imports

ROOT = Path(__file__).parent.parent
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tailrace", "tests"}


def test_every_room_is_packaged() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(config["packages"]) == {"tailrace"} | {f"tailrace.{room}" for room in ROOMS}
    assert config["package-dir"] == {f"tailrace.{room}": room for room in ROOMS}


def test_every_room_is_linked_for_type_checkers() -> None:
    links = {p.name: p.readlink() for p in (ROOT / "tailrace").iterdir() if p.is_symlink()}
    assert links == {room: Path("..") / room for room in ROOMS}


def test_rooms_have_no_inner_rooms() -> None:
    for room in ROOMS:
        inner = [path for path in (ROOT / room).iterdir() if (path / "__init__.py").exists()]
        assert not inner, inner


def test_the_version_is_the_same_everywhere() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


def test_the_server_extra_is_what_the_broker_imports_and_doctor_looks_for() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [re.split(r"[<>=]", one)[0] for one in extras["optional-dependencies"]["server"]]
    modules = {name.replace("-", "_") for name in named}
    assert modules == set(EXTRAS)
    imported = {name for path in (ROOT / "broker").glob("*.py") for name in imports(path)}
    assert modules <= {name.partition(".")[0] for name in imported}


def test_the_image_is_as_the_contract_has_it() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    health = '["tailrace", "cluster", "health", "--local", "-q"]'
    assert f"HEALTHCHECK --interval=5s --start-period=30s CMD {health}" in lines
    assert {"USER 10001:10001", "STOPSIGNAL SIGTERM", 'CMD ["serve"]'} <= set(lines)
