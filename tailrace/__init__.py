"""tailrace: a log-based message broker for Python teams."""

from pathlib import Path

_here = Path(__file__).parent
if (_here / "broker").is_symlink():  # a checkout, not an install:
    __path__.insert(0, str(_here.parent))  # the rooms are the top-level folders
