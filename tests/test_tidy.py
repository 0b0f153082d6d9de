"""The house is kept tidy: sizes of files and functions, names, and words that may not stay."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("protocol", "storage", "broker", "client", "simulation", "testing", "bench", "tailrace")
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 100
# Built from halves, so that this file does not find itself.
UNFINISHED = re.compile(
    "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error"))
)
TEXTS = ("*.py", "*.md", "*.toml", "*.yml", "*.sh")


def sources(*folders: str) -> list[Path]:
    found = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
    return sorted({p for p in found if not any(parent.is_symlink() for parent in p.parents)})


PYTHON = sources(*ROOMS, "tests")


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PYTHON, ids=ids)
def test_file_is_short_enough_to_read(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= FILE_LINES_MAX, f"{len(lines)} lines"
    wide = [n for n, line in enumerate(lines, 1) if len(line) > COLUMNS_MAX]
    assert not wide, f"lines wider than {COLUMNS_MAX}: {wide}"


@pytest.mark.parametrize("path", PYTHON, ids=ids)
def test_functions_fit_on_a_screen(path: Path) -> None:
    long: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                long.append(f"{node.name}: {length} lines")
    assert not long, long


@pytest.mark.parametrize("path", sources(*ROOMS), ids=ids)
def test_modules_say_what_they_are(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "no module docstring"
    assert path.stem != "utils"


def test_nothing_is_left_unfinished() -> None:
    marked = [
        f"{ids(path)}:{number}"
        for path in sources(*ROOMS)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert not marked, marked


def test_docs_links_lead_somewhere() -> None:
    broken: list[str] = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if not page.exists():
            continue
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.name} -> {target}")
    assert not broken, broken
