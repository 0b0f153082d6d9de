"""The transcripts beside this file, read aloud: every indented sentence must bring forth exactly
the lines below it.

After a deliberate change of what is answered, write them anew and read what changed:
``REWRITE_TRANSCRIPTS=1 pytest tests/transcripts``.
"""

import os
from pathlib import Path

import pytest

from tests.transcripts.story import Story

TRANSCRIPTS = sorted(Path(__file__).parent.glob("*.md"))
SENTENCE = "    at "
CONSEQUENCE = "        "


def retold(text: str) -> str:
    """The same text with the lines that the sentences bring forth now. A heading begins a story."""
    story = Story()
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            story = Story()
        if line.startswith(CONSEQUENCE):
            continue
        lines.append(line)
        if line.startswith(SENTENCE):
            lines += [CONSEQUENCE + one for one in story.tell(line.strip())]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_it_happens_as_it_is_written(path: Path) -> None:
    text = path.read_text()
    now = retold(text)
    if os.environ.get("REWRITE_TRANSCRIPTS"):
        path.write_text(now)
    assert now == text or os.environ.get("REWRITE_TRANSCRIPTS")


def test_there_are_transcripts() -> None:
    assert TRANSCRIPTS
