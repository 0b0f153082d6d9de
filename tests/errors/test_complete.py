"""Each code of the catalogue is brought about, for real, by a test that says so with a marker."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace.protocol.catalogue import CATALOGUE
from tailrace.protocol.errors import CLASSES

TESTS = Path(__file__).parent.parent
FILES = sorted(TESTS.rglob("test_*.py"))
_COUNTS = Counter(cls.__name__ for cls in CLASSES.values())
UNIQUE = {code: cls.__name__ for code, cls in CLASSES.items() if _COUNTS[cls.__name__] == 1}
Test = ast.FunctionDef | ast.AsyncFunctionDef


def marked(path: Path) -> Iterator[tuple[Test, list[str]]]:
    """The tests of a file with ``@pytest.mark.provokes(…)``, and the codes they name."""
    text = path.read_text()
    if "mark.provokes" not in text:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Test):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.provokes":
                    yield node, [ast.literal_eval(argument) for argument in mark.args]


MARKED = [(path, node, codes) for path in FILES for node, codes in marked(path)]


def test_every_code_is_provoked() -> None:
    provoked = {code for _, _, codes in MARKED for code in codes}
    assert provoked == set(CATALOGUE)


@pytest.mark.parametrize(
    ("path", "node", "codes"), MARKED, ids=[f"{p.stem}.{n.name}" for p, n, _ in MARKED]
)
def test_a_marked_test_looks_at_the_codes_it_names(
    path: Path, node: Test, codes: list[str]
) -> None:
    """In its own lines, or in the table that it is given: by code, or by a class of one code."""
    text = path.read_text()
    said = ast.unparse(ast.Module(node.body, []))
    given = {
        name.id
        for mark in node.decorator_list
        for name in ast.walk(mark)
        if isinstance(name, ast.Name)
    }
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if given & {ast.unparse(target) for target in targets}:
                said += ast.unparse(statement)
    for code in codes:
        assert code in said or UNIQUE.get(code, code) in said, code
