"""The Dockerfiles, as far as a machine without Docker can check them."""

import re
import tomllib
from pathlib import Path

import pytest

from infra.bundle import ROOT

DOCKERFILES = [ROOT / "training" / "Dockerfile", ROOT / "inference" / "Dockerfile"]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Name and argument of each instruction, continued lines joined."""
    lines = re.sub(r"\\\n", " ", dockerfile.read_text(encoding="utf-8")).splitlines()
    return [
        (name, rest.strip())
        for name, _, rest in (
            line.partition(" ") for line in lines if line and not line.startswith("#")
        )
    ]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_the_base_image_is_an_exact_version(dockerfile: Path) -> None:
    (image,) = [rest for name, rest in instructions(dockerfile) if name == "FROM"]
    assert re.search(r":\d+\.\d+\.\d+", image), image


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_the_program_is_process_one(dockerfile: Path) -> None:
    (entry,) = [rest for name, rest in instructions(dockerfile) if name == "ENTRYPOINT"]
    assert entry.startswith("["), "exec form: SIGTERM must reach Python"
    module = re.findall(r'"([^"]+)"', entry)[-1]
    assert (ROOT / module.replace(".", "/") / "__main__.py").is_file()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_what_is_copied_exists_and_no_secret_is(dockerfile: Path) -> None:
    defaults = dict(
        rest.split("=", 1)
        for name, rest in instructions(dockerfile)
        if name == "ARG" and "=" in rest
    )
    for name, rest in instructions(dockerfile):
        if name == "COPY":
            *sources, _ = re.sub(r"\$\{(\w+)\}", lambda m: defaults[m[1]], rest).split()
            for source in sources:
                assert source != ".", "the whole repository, its state and keys included"
                assert (ROOT / source).exists(), source


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_extras_exist_and_nothing_is_kept_in_caches(dockerfile: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    text = dockerfile.read_text(encoding="utf-8")
    for extra in re.findall(r"\.\[(\w+)\]", text):
        assert extra in extras
    assert "PIP_NO_CACHE_DIR=1" in text
    assert "/opt/ml" not in "".join(rest for _, rest in instructions(dockerfile))


def test_the_endpoints_image_says_that_it_serves_many_models() -> None:
    labels = [rest for name, rest in instructions(DOCKERFILES[1]) if name == "LABEL"]
    assert "com.amazonaws.sagemaker.capabilities.multi-models=true" in labels
    assert "com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true" in labels
