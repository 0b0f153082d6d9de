"""Every code is explained, and the page in docs/ says what the catalogue says."""

import re
from pathlib import Path

import pytest

from tailrace.protocol.catalogue import CATALOGUE, Entry, page
from tailrace.protocol.errors import CLASSES, RETRIABLE

DOCS = Path(__file__).parent.parent.parent / "docs"
WARNINGS = {"T050", "T051", "T071", "T072", "T073", "T110"}


def test_every_code_of_this_release_is_explained_and_no_other() -> None:
    assert set(CATALOGUE) == set(CLASSES) | WARNINGS
    assert list(CATALOGUE) == sorted(CATALOGUE)


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.code)
def test_entry_is_whole(entry: Entry) -> None:
    cls = CLASSES.get(entry.code)
    assert entry.class_name == ("warning" if cls is None else cls.__name__)
    assert entry.retriable == (entry.code in RETRIABLE)
    assert entry.example.startswith(f"{entry.code}: ")
    for text in (entry.cause, entry.fix, entry.example):
        assert text.isascii()
        assert text == text.strip()
        assert len(text) > 20
        assert not re.search(r"[{}]|  |\.\.$", text)


def test_the_page_in_docs_is_this_catalogue() -> None:
    """Write it anew with ``python -m tailrace.protocol.catalogue > docs/errors.md``."""
    assert (DOCS / "errors.md").read_text() == page()
