"""Imports point down the house only, and the pure rooms stay pure (docs/design.md)."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BELOW: dict[str, set[str]] = {
    "protocol": set(),
    "storage": {"protocol"},
    "client": {"protocol"},
    "broker": {"protocol", "storage"},
    "simulation": {"protocol", "storage", "broker", "client"},
    "testing": {"protocol", "storage", "broker", "client", "simulation"},
    "bench": {"protocol", "storage", "broker", "client", "simulation"},
}
STORAGE_MAY_SEE = {
    *(
        "batch",
        "compression",
        "errors",
        "texts",
        "texts_cli",
        "texts_storage",
        "units",
        "catalogue",
    ),
    *("console", "record_json"),  # the offline command line
}
WITHOUT: dict[str, set[str]] = {
    "protocol": {"trio", "anyio", "socket", "time", "random", "threading", "asyncio"},
    "storage": {"trio", "anyio", "socket", "time", "random", "asyncio"},
    "client": {"trio"},
}
PURE_FILES = {
    "protocol": {"shapes", "shaping"},
    "broker": {
        *("catalog", "cluster_view", "config", "election", "forecast", "lag", "limits", "members"),
        *("decisions", "placement", "reassignment", "replica", "settings"),
    },
    "client": {"accumulator", "shapes", "codecs"},
}
IMPURE = {"trio", "anyio", "socket", "asyncio", "threading"}


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).glob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module named by an import statement anywhere in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def own(names: set[str]) -> set[tuple[str, str]]:
    """(room, module) of the imports of our own rooms."""
    parts = [name.split(".") for name in names if name.startswith("tailrace.")]
    return {(p[1], p[2] if len(p) > 2 else "") for p in parts if p[1] in BELOW}


@pytest.mark.parametrize("room", BELOW)
def test_rooms_import_only_rooms_below(room: str) -> None:
    for path in modules(room):
        rooms = {name for name, _ in own(imports(path))}
        assert rooms <= BELOW[room] | {room}, f"{path} imports {rooms - BELOW[room] - {room}}"


def test_storage_knows_batches_and_errors_only() -> None:
    for path in modules("storage"):
        seen = {module for room, module in own(imports(path)) if room == "protocol" and module}
        assert seen <= STORAGE_MAY_SEE, f"{path} imports protocol.{seen - STORAGE_MAY_SEE}"


@pytest.mark.parametrize("room", WITHOUT)
def test_rooms_do_without_what_is_not_theirs(room: str) -> None:
    for path in modules(room):
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & WITHOUT[room], f"{path} imports {tops & WITHOUT[room]}"


@pytest.mark.parametrize("room", PURE_FILES)
def test_pure_files_stay_pure(room: str) -> None:
    for name in PURE_FILES[room]:
        path = ROOT / room / f"{name}.py"
        tops = {imported.split(".")[0] for imported in imports(path)}
        assert not tops & IMPURE, f"{path} imports {tops & IMPURE}"


def test_no_import_cycles() -> None:
    """Among top-level imports: one inside a function is how a lazy import looks."""
    graph: dict[str, set[str]] = {}
    for room in BELOW:
        for path in modules(room):
            tree = ast.parse(path.read_text())
            names: set[str] = set()
            for node in tree.body:
                if isinstance(node, ast.ImportFrom) and node.module:
                    names |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
                elif isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
            graph[f"tailrace.{room}.{path.stem}"] = names
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, "import cycle: " + " -> ".join((*trail, module))
        if module not in done:
            for name in graph[module] & graph.keys():
                visit(name, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_standard_library_names_are_known() -> None:
    assert WITHOUT["protocol"] - {"trio", "anyio"} <= sys.stdlib_module_names
