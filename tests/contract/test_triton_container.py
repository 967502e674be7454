"""What the Triton shell promises beyond the suite of both; with the real tritonserver."""

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from limner.contracts import artifact
from limner.contracts.generation import TARGET_HEADER, GenerateResponse
from tests.support.artifacts import write_artifact
from tests.support.containers import SLOTS, TritonContainer
from tests.support.damages import DAMAGES
from tests.support.held import HELD

PLATFORM_ROOT = Path("/opt/ml/models")
# Where Triton and the reader could get in each other's way; all others are the reader's alone.
SAMPLE = (
    "missing adapter",
    "missing manifest",
    "extra folder",
    "extra file in a folder",
    "packed is a pickle",
    "not a number",
    "rank over the limit",
)


@pytest.fixture(scope="module")
def running(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonContainer]:
    container = TritonContainer.start(base, tmp_path_factory.mktemp("c"), scarce=True)
    for seed, name in enumerate(("alpha", "beta", "gamma", "delta")):
        write_artifact(container.models / name / "model", base, seed=seed)
    yield container
    assert container.stop() == 0


@pytest.fixture
def container(running: TritonContainer) -> TritonContainer:
    """The running container with all slots free."""
    for name in running.loaded():
        assert running.unload(name).status == 200
    return running


@pytest.mark.parametrize("damage", [DAMAGES[name] for name in SAMPLE], ids=SAMPLE)
def test_a_bad_artifact_is_refused_and_takes_no_slot(
    container: TritonContainer, base: Path, damage: Callable[[Path, Path], object]
) -> None:
    folder = container.models / "damaged" / "model"
    shutil.rmtree(folder.parent, ignore_errors=True)
    write_artifact(folder, base, rank=4)
    damage(folder, base)
    answer = container.load("damaged")
    assert answer.refusal == (400, "ARTIFACT_INVALID"), answer.text
    assert str(container.models) not in answer.text
    assert container.loaded() == []
    assert container.get("/ping").status == 200


@pytest.mark.parametrize("name", [artifact.TRITON_SHELL, artifact.TRITON_CONFIG])
def test_a_shell_that_is_not_ours_is_refused(
    container: TritonContainer, base: Path, name: str
) -> None:
    folder = container.models / "edited" / "model"
    write_artifact(folder, base)
    with (folder / name).open("a") as file:
        file.write("# edited\n")
    answer = container.load("edited")
    assert answer.refusal == (400, "ARTIFACT_INVALID"), answer.text
    assert name in answer.text


def test_a_folder_outside_the_models_root_is_refused(
    container: TritonContainer, tmp_path: Path
) -> None:
    shutil.copytree(container.models / "alpha" / "model", tmp_path / "outside" / "model")
    answer = container.load("alpha", tmp_path / "outside")
    assert answer.refusal == (400, "INVALID_INPUT"), answer.text


def test_loading_leaves_the_artifact_as_it_was(container: TritonContainer) -> None:
    def members() -> dict[str, str]:
        folder = container.models / "alpha" / "model"
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }

    before = members()
    assert container.load("alpha").status == 200
    assert members() == before
    assert set(before) == set(artifact.MEMBERS)


def test_requests_of_several_users_are_in_flight_together(container: TritonContainer) -> None:
    """The engine must see them all at once, or it could never draw them as one batch."""
    names = ("alpha", "beta", "gamma")
    for name in names:
        container.load(name)
    with ThreadPoolExecutor(len(names)) as pool:
        asked = [pool.submit(container.invoke, name, prompt=HELD, steps=1) for name in names]
        container.gate.wait_for(requests=len(names))
        assert not any(one.done() for one in asked)
        container.gate.open()
        assert [one.result().status for one in asked] == [200] * len(names)


@pytest.mark.parametrize("whose", ["base", "alpha"])
def test_a_container_in_which_a_model_has_died_ends(base: Path, tmp_path: Path, whose: str) -> None:
    """Triton would stay healthy, and start none anew; SageMaker starts a container anew."""
    container = TritonContainer.start(base, tmp_path)
    write_artifact(container.models / "alpha" / "model", base)
    assert container.load("alpha").status == 200
    pid = container.drawing_pid() if whose == "base" else container.thin_pid(whose)
    os.kill(pid, signal.SIGKILL)
    assert container.process.wait(timeout=90) == 1
    assert container.lines()[-1]["event"] == "models can be served no more"
    container.http.close()


def test_no_model_takes_the_place_of_base(base: Path, tmp_path: Path) -> None:
    """Triton has one name for both; only who may write to the bucket could choose it."""
    container = TritonContainer.start(base, tmp_path)
    for name in ("alpha", "beta"):
        write_artifact(container.models / name / "model", base)
    body = {"model_name": "alpha", "url": str(container.url("alpha"))}
    answer = container.http.post("/models", json=body, headers={TARGET_HEADER: "base"})
    assert answer.status_code == 400
    assert "No model may be called" in answer.text
    assert container.load("beta").status == 200
    assert container.invoke("beta", steps=1).status == 200
    # Triton 2.51 never forgets the load that failed, and would wait for it at its end.
    os.kill(container.drawing_pid(), signal.SIGKILL)
    assert container.process.wait(timeout=90) == 1
    container.http.close()


def test_it_loads_from_where_the_platform_unpacks(base: Path, tmp_path: Path) -> None:
    """Triton knows SageMaker's path by its letters, so only there is its whole rule tried.

    Two models: each is a folder ``model`` in a repository of its own, and Triton has no namespaces.
    """
    homes = [PLATFORM_ROOT / uuid4().hex for _ in range(2)]
    try:
        for home in homes:
            home.mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"{PLATFORM_ROOT}: {error.strerror}")
    try:
        for seed, home in enumerate(homes):
            write_artifact(home / "model", base, seed=seed)
        container = TritonContainer.start(
            base, tmp_path, extra={"LIMNER_MODELS_ROOT": str(PLATFORM_ROOT)}
        )
        for home in homes:
            assert container.load(home.name, home / "model").status == 200
        one, other = (_image(container, home.name) for home in homes)
        assert one != other
        assert container.unload(homes[0].name).status == 200
        assert container.invoke(homes[0].name, steps=1).status == 404
        assert _image(container, homes[1].name) == other
        assert container.unload(homes[1].name).status == 200
        assert container.stop() == 0
    finally:
        for home in homes:
            shutil.rmtree(home, ignore_errors=True)


def _image(container: TritonContainer, name: str) -> bytes:
    answer = container.invoke(name, steps=2, seed=7)
    assert answer.status == 200, answer.text
    return GenerateResponse.model_validate_json(answer.content).images[0].content


def test_what_a_user_costs(container: TritonContainer, record_property) -> None:
    for name in ("alpha", "beta", "gamma"):
        assert container.load(name).status == 200
    sizes = [_private_mb(container.thin_pid(name)) for name in ("alpha", "beta", "gamma")]
    seconds = [container.invoke("alpha", steps=1).elapsed_s for _ in range(3)]
    figure = (
        f"Triton shell: a thin model has {max(sizes):.0f} MB of its own; "
        f"one step over HTTP {min(seconds) * 1000:.0f} ms; {SLOTS} users, one base"
    )
    record_property("figure", figure)
    assert max(sizes) < 100


def _private_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
