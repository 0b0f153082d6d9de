"""The public names: complete, lazy, and the same for people and type checkers."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tailrace
from tailrace.protocol import errors

ROOT = Path(__file__).parent.parent
HEAVY = ("trio", "rich", "msgspec", "pydantic", "lz4", "zstandard", "anyio", "msgpack", "ssl")


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
        check=True,
    )
    return ended.stdout.strip()


@pytest.mark.parametrize("name", tailrace.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(tailrace, name) is not None
    assert name in dir(tailrace)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "tailrace" / "__init__.py").read_text())
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert seen.keys() | {"__version__"} == set(tailrace.__all__)
    for name, module in seen.items():
        if name != "sync":
            assert tailrace._MODULE_OF[name] == module


def test_every_error_is_public() -> None:
    classes = {
        name
        for name, found in vars(errors).items()
        if name[0] != "_"
        and isinstance(found, type)
        and issubclass(found, errors.TailraceError)
        and not issubclass(found, errors.InternalError)
    }
    assert classes <= set(tailrace.__all__)


def test_import_loads_nothing_heavy() -> None:
    loaded = python("import sys, tailrace; print(' '.join(sys.modules))").split()
    assert not set(HEAVY) & set(loaded)
    ours = {name for name in loaded if name.startswith("tailrace.")}
    assert ours <= {"tailrace.protocol", "tailrace.protocol.version"}


def test_sdk_loads_no_server_and_no_codec_that_is_not_used() -> None:
    code = "import sys, tailrace; tailrace.connect; tailrace.Consumer; print(*sys.modules)"
    loaded = set(python(code).split())
    assert not loaded & {"trio", "rich", "msgspec", "pydantic"}


def test_sync_is_reached_by_its_name() -> None:
    assert python("import tailrace; print(tailrace.sync.connect.__module__)") == (
        "tailrace.client.sync"
    )


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tailrace' has no attribute 'queue'"):
        tailrace.queue  # type: ignore[attr-defined]  # noqa: B018


def test_version_is_the_project_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert tailrace.__version__ == project["version"]


def test_a_user_s_own_client_py_does_not_break_the_sdk(tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text("raise RuntimeError('mine')\n")
    (tmp_path / "app.py").write_text("import tailrace\nprint(tailrace.Client.__name__)\n")
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "app.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=30,
        check=False,
    )
    assert ended.stdout == "Client\n", ended.stderr
