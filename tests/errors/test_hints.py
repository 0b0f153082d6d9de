"""Every command line that an error or its explanation names can be typed as it stands."""

import re

import pytest

from tailrace.protocol.catalogue import CATALOGUE, Entry
from tests.errors.provoking import check_commands, commands
from tests.protocol.test_errors import TEXTS

CAPITALS = {
    **{"NAME": "orders", "KEY": "topic.retention", "DIR": "data", "TOPIC:P": "orders:0"},
    **{"T:P:O": "orders:0:1", "GROUP": "billing", "CODE": "T041"},
}


def typed(text: str) -> str:
    """With what stands for a name replaced by one."""
    for placeholder, name in CAPITALS.items():
        text = re.sub(rf"\b{placeholder}\b(?!=)", name, text)
    return text


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.code)
def test_commands_of_the_catalogue(entry: Entry) -> None:
    for text in (entry.cause, entry.fix, entry.example):
        check_commands(typed(text))


@pytest.mark.parametrize("text", [text for _, text in TEXTS], ids=lambda text: text[:4])
def test_commands_of_the_texts(text: str) -> None:
    check_commands(text)


def test_commands_are_found_where_they_stand() -> None:
    text = "Free it: tailrace topic alter a --set b=1MiB. Or (tailrace dev); see tailrace.toml."
    assert list(commands(text)) == [["topic", "alter", "a", "--set", "b=1MiB"], ["dev"]]
