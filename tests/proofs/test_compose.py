"""What the proofs with containers do where there are none."""

import re
from pathlib import Path

import pytest

from tests.proofs.compose import Trouble, compose_command
from tests.proofs.first_ten_compose import images, reason_to_skip
from tests.proofs.newcomer import ROOT


def test_without_docker_they_are_left_out_and_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason_to_skip() == "needs Docker"
    with pytest.raises(Trouble, match="needs Docker"):
        compose_command()


def test_images_of_others_have_a_version() -> None:
    text = (ROOT / "deploy" / "compose.yml").read_text()
    named = [*images(), *re.findall(r"image: (.*/.*)", text)]
    assert len(named) >= 4
    assert [name for name in named if not re.search(r":v?\d+\.\d+", name)] == []
