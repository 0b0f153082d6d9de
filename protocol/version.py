"""The version of this software, once; ``tests/test_packaging.py`` holds pyproject.toml to it."""

VERSION = "0.1.0"
SOFTWARE = f"tailrace/{VERSION}"  # how both sides name themselves in Hello
