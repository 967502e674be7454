"""The README's commands, run as a new user runs them, on the real laptop with real training.

Only the number of optimizer steps is cut down; everything else is what the README says.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from limner import local

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
STEPS = 4
COMMAND_S = 400


def readme_commands(heading: str) -> list[list[str]]:
    """The commands of the first console block below a heading."""
    section = (ROOT / "README.md").read_text().split(f"## {heading}\n", 1)[1]
    (block,) = re.findall(r"```console\n(.*?)```", section, re.DOTALL)[:1]
    lines = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line, comments=True) for line in lines]


class Terminal:
    """A shell of a user who stands in a project folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "examples").symlink_to(ROOT / "examples")
        (folder / ".venv").mkdir()
        (folder / ".venv" / "bin").symlink_to(BIN)
        foreign = ("AWS_", "LIMNER_", "OMP_")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    folder = tmp_path_factory.mktemp("project")
    yield Terminal(folder)
    local.stop(folder)


@pytest.mark.timeout(900)
def test_the_readme_s_commands_do_what_it_says(terminal: Terminal) -> None:
    seen = []
    for command in readme_commands("Your own subject"):
        short = ["--steps", str(STEPS)] if "onboard" in command else []
        if command[1] == "down":
            look_around(terminal)
        done = terminal.run(*command, *short)
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        seen.append(command[1])
    assert seen == ["up", "onboard", "generate", "status", "down"]
    pictures = sorted((terminal.folder / "pictures").glob("*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.size == (64, 64)
            assert len(image.getcolors(maxcolors=64 * 64)) > 100, "a picture, not a plain colour"
    assert local.running(terminal.folder) is None


def look_around(terminal: Terminal) -> None:
    """What a user tries next, while the laptop is up: graph, JSON, bad input, the aws CLI."""
    limner = ".venv/bin/limner"
    status = terminal.run(limner, "status", "carol", "--json")
    document = json.loads(status.stdout)
    assert document["models"][0]["live_version"] == 1
    (request,) = document["requests"]
    graph = terminal.run(limner, "graph", request["request_id"], "--out", "carol.svg")
    assert graph.returncode == 0, graph.stderr
    drawing = ET.parse(terminal.folder / "carol.svg").getroot()  # noqa: S314 - our own output
    outcomes = {g.get("data-state"): g.get("data-outcome") for g in drawing.iter()}
    assert outcomes["FineTune"] == outcomes["Onboarded"] == "succeeded"

    again = terminal.run(limner, "onboard", "carol", "examples/photos/cat", "--json")
    assert json.loads(again.stdout)["request"]["already_ready"] is True

    empty = terminal.folder / "few"
    empty.mkdir()
    (empty / "notes.png").write_text("not a photo")
    bad = terminal.run(limner, "onboard", "dave", "few")
    assert bad.returncode == 2
    assert "Fix:" in bad.stderr
    assert "Traceback" not in bad.stderr
    unknown = terminal.run(limner, "generate", "nobody", "a photo")
    assert unknown.returncode == 4
    assert "MODEL_NOT_FOUND" in unknown.stderr

    laptop = local.running(terminal.folder)
    assert laptop is not None
    answer = terminal.run(
        ".venv/bin/aws",
        "stepfunctions",
        "list-state-machines",
        "--output",
        "json",
        AWS_ENDPOINT_URL=laptop.endpoint_url,
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    assert answer.returncode == 0, answer.stderr
    assert "limner-local-onboard" in answer.stdout
