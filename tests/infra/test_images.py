"""The Dockerfiles, as far as a machine without Docker can check them."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from aws_cdk import App, Stack
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.bundle import ROOT
from infra.images import repositories

DOCKERFILES = [ROOT / "training" / "Dockerfile", ROOT / "inference" / "Dockerfile"]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Name and argument of each instruction, continued lines joined."""
    lines = re.sub(r"\\\n", " ", dockerfile.read_text(encoding="utf-8")).splitlines()
    return [
        (name, rest.strip())
        for name, _, rest in (
            line.partition(" ") for line in lines if line and not line.startswith("#")
        )
    ]


def defaults(dockerfile: Path) -> dict[str, str]:
    """The build arguments that have a default."""
    return dict(
        rest.split("=", 1)
        for name, rest in instructions(dockerfile)
        if name == "ARG" and "=" in rest
    )


def filled(dockerfile: Path, text: str) -> str:
    """A text of a Dockerfile with the defaults of its build arguments."""
    values = defaults(dockerfile)
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], text)


def base_image(dockerfile: Path) -> str:
    (image,) = [rest for name, rest in instructions(dockerfile) if name == "FROM"]
    return filled(dockerfile, image)


def optional(extra: str) -> list[Requirement]:
    """The requirements of an extra of pyproject.toml."""
    return [Requirement(line) for line in PROJECT["optional-dependencies"][extra]]


def test_the_endpoints_base_image_is_an_exact_version() -> None:
    image = base_image(DOCKERFILES[1])
    assert re.search(r":\d+\.\d+\.\d+", image), image


def test_the_training_image_stands_on_the_deep_learning_container_of_our_torch() -> None:
    """AWS publishes one tag a minor version of torch, and patches the system below it."""
    found = re.fullmatch(
        r"public\.ecr\.aws/deep-learning-containers/pytorch"
        r":(\d+\.\d+)-cu\d+-amzn2023-sagemaker",
        base_image(DOCKERFILES[0]),
    )
    assert found
    (torch,) = [wanted for wanted in optional("training") if wanted.name == "torch"]
    assert torch.specifier.contains(f"{found[1]}.0")


def test_the_training_image_pins_all_that_it_installs() -> None:
    """Exactly, within the ranges of pyproject.toml, and down to the last dependency."""
    lines = (ROOT / "training" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    assert all(re.fullmatch(r"==[\w.]+", version) for version in versions.values())
    assert len(versions) == len(pins)
    todo = [*map(Requirement, PROJECT["dependencies"]), *optional("training")]
    seen = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        assert wanted.specifier.contains(versions[name].removeprefix("==")), wanted
        if name not in seen:
            seen.add(name)
            below = map(Requirement, metadata.requires(name) or [])
            todo += [r for r in below if r.marker is None or r.marker.evaluate({"extra": ""})]


def test_the_training_image_runs_as_root_unless_told_otherwise() -> None:
    """SageMaker mounts /opt/ml as root; the program itself needs no root."""
    users = [rest for name, rest in instructions(DOCKERFILES[0]) if name == "USER"]
    assert [filled(DOCKERFILES[0], user) for user in users] == ["0:0"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_the_program_is_process_one(dockerfile: Path) -> None:
    (entry,) = [rest for name, rest in instructions(dockerfile) if name == "ENTRYPOINT"]
    assert entry.startswith("["), "exec form: SIGTERM must reach Python"
    module = re.findall(r'"([^"]+)"', entry)[-1]
    assert (ROOT / module.replace(".", "/") / "__main__.py").is_file()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_what_is_copied_exists_and_no_secret_is(dockerfile: Path) -> None:
    for name, rest in instructions(dockerfile):
        if name == "COPY":
            *sources, _ = filled(dockerfile, rest).split()
            for source in sources:
                assert source != ".", "the whole repository, its state and keys included"
                assert (ROOT / source).exists(), source


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_extras_exist_and_nothing_is_kept_in_caches(dockerfile: Path) -> None:
    text = dockerfile.read_text(encoding="utf-8")
    for extra in re.findall(r"\.\[(\w+)\]", text):
        assert extra in PROJECT["optional-dependencies"]
    assert "PIP_NO_CACHE_DIR=1" in text
    assert "/opt/ml" not in "".join(rest for _, rest in instructions(dockerfile))


def test_the_endpoints_image_says_that_it_serves_many_models() -> None:
    labels = [rest for name, rest in instructions(DOCKERFILES[1]) if name == "LABEL"]
    assert "com.amazonaws.sagemaker.capabilities.multi-models=true" in labels
    assert "com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true" in labels


OWN = ["limner/training"]


def told(*images: str) -> list[str]:
    """ARNs with pseudo parameters as CloudFormation writes them."""
    written = Stack(App(), "Any").resolve(repositories(images, OWN))
    joined = [item["Fn::Join"][1] if isinstance(item, dict) else [item] for item in written]
    return [
        "".join(part if isinstance(part, str) else f"<{part['Ref']}>" for part in parts)
        for parts in joined
    ]


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        (
            "763104351884.dkr.ecr.eu-west-1.amazonaws.com/pytorch-training:2.6.0-gpu-py312",
            "eu-west-1:763104351884:repository/pytorch-training",
        ),
        (
            f"999988887777.dkr.ecr.us-east-1.amazonaws.com/team/limner@sha256:{'0' * 64}",
            "us-east-1:999988887777:repository/team/limner",
        ),
        (
            "111122223333.dkr.ecr.cn-north-1.amazonaws.com.cn/limner/training:1",
            "cn-north-1:111122223333:repository/limner/training",
        ),
    ],
)
def test_the_right_to_pull_follows_the_image_to_whosever_registry(
    image: str, repository: str
) -> None:
    assert told(image) == [f"arn:<AWS::Partition>:ecr:{repository}"]


@pytest.mark.parametrize("images", [(), ("",), ("limner/training:local",)])
def test_images_that_are_told_at_deployment_lie_in_our_own_repositories(
    images: tuple[str, ...],
) -> None:
    own = "<AWS::Region>:<AWS::AccountId>:repository/limner/training"
    assert told(*images) == [f"arn:<AWS::Partition>:ecr:{own}"]


def test_what_docker_reads_holds_no_state_and_no_secret() -> None:
    """Everything is left out, and then let in again: what the Dockerfiles copy, and no more."""
    first, *rest = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert first == "*"
    let_in = {line[1:] for line in rest if line.startswith("!")}
    copied = {
        source.removeprefix("./")
        for dockerfile in DOCKERFILES
        for name, argument in instructions(dockerfile)
        if name == "COPY"
        for source in argument.split()[:-1]
    }
    assert let_in == {re.sub(r"\$\{\w+\}", "bases", source) for source in copied}
    assert "**/.env" in rest
