"""One synthesis a stage for all tests of infra: it costs seconds, an assertion milliseconds."""

from pathlib import Path

import pytest

from infra.publish import Synthesis, synthesize
from infra.settings import StageSettings, laptop
from tests.infra.iam import Account
from tests.support.faults.figures import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """The stage of the committed template."""
    return synthesize(laptop(), tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="session")
def cloud_assembly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stage on AWS is written, with its assets."""
    return tmp_path_factory.mktemp("cloud")


@pytest.fixture(scope="session")
def cloud(cloud_assembly: Path) -> Synthesis:
    """A stage on AWS, with a key of its own."""
    return synthesize(StageSettings(stage="prod"), cloud_assembly)


@pytest.fixture(params=["local", "cloud"])
def stage(request: pytest.FixtureRequest) -> Synthesis:
    """Each of the two."""
    made: Synthesis = request.getfixturevalue(request.param)
    return made


@pytest.fixture(scope="session")
def account(cloud: Synthesis) -> Account:
    """The account after the deployment of the stage on AWS."""
    return Account(cloud.template)
