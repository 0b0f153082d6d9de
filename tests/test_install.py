"""What is installed is whole, and a user's own modules do not get in its way."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("trio", "rich", "msgspec", "pydantic", "lz4", "zstandard")


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """Run the interpreter; with ``path`` in front of everything else that can be imported."""
    code = ["-c", f"import sys; sys.path.insert(0, {str(path)!r})\n" + arguments[-1]]
    command = [sys.executable, *arguments[:-1], *(code if path else ["-c", arguments[-1]])]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as ``pip install .`` lays it out, without its dependencies."""
    pytest.importorskip(
        "setuptools", reason="building the wheel needs setuptools: make test has it"
    )
    target = tmp_path_factory.mktemp("installed")
    source = tmp_path_factory.mktemp("source")  # setuptools leaves a build folder behind
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "tailrace", source / "tailrace", symlinks=True)
    for room in (p.name for p in (ROOT / "tailrace").iterdir() if p.is_symlink()):
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    command += [str(target), "--no-build-isolation", "--disable-pip-version-check", str(source)]
    subprocess.run(command, check=True, timeout=120)
    return target


@pytest.mark.slow
def test_every_module_of_every_room_is_installed(installed: Path) -> None:
    rooms = [p.name for p in (ROOT / "tailrace").iterdir() if p.is_symlink()]
    for room in rooms:
        ours = {path.name for path in (ROOT / room).glob("*.py")}
        theirs = {path.name for path in (installed / "tailrace" / room).glob("*.py")}
        assert theirs == ours, room
    assert (installed / "tailrace" / "py.typed").exists()


@pytest.mark.slow
def test_the_installed_package_imports_from_where_it_was_installed(
    installed: Path, tmp_path: Path
) -> None:
    found = python("import tailrace; print(tailrace.connect.__code__.co_filename)",
                   cwd=tmp_path, path=installed)  # fmt: skip
    assert Path(found.strip()).is_relative_to(installed)


@pytest.mark.parametrize("name", ["client", "broker", "protocol", "storage", "testing", "bench"])
def test_a_module_of_the_users_beside_the_script_does_no_harm(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module was imported')\n")
    (tmp_path / "app.py").write_text(
        "import tailrace\ntailrace.connect('tailrace://localhost')\nprint(tailrace.Client)\n"
    )
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_sdk_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, json, tailrace; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(python(code, cwd=tmp_path)))
    assert not loaded & set(HEAVY)


def test_the_whole_sdk_runs_without_trio(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['trio'] = None\n"
        "import tailrace, tailrace.sync, tailrace.cli\n"
        "for name in tailrace.__all__: getattr(tailrace, name)\n"
    )
    python(code, cwd=tmp_path)
