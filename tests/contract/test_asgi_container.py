"""What the ASGI shell promises beyond the suite of both: pages, names, paths, and bad artifacts."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from limner.contracts import artifact
from tests.support.artifacts import write_artifact
from tests.support.containers import Answer, Container
from tests.support.damages import DAMAGES
from tests.support.held import HELD
from tests.support.laptop import until


@pytest.fixture(scope="module")
def running(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    container = Container.start(base, tmp_path_factory.mktemp("c"), scarce=True)
    for seed, name in enumerate(("alpha", "beta", "gamma")):
        write_artifact(container.models / name / "model", base, seed=seed)
    yield container
    assert container.stop() == 0


@pytest.fixture
def container(running: Container) -> Iterator[Container]:
    """The running container with all slots free."""
    yield running
    for name in running.loaded():
        running.unload(name)


def _names(answer: Answer) -> list[str]:
    return [model["modelName"] for model in json.loads(answer.content)["models"]]


def test_a_listing_comes_in_pages(container: Container) -> None:
    for name in ("alpha", "beta", "gamma"):
        container.load(name)
    first = container.get("/models", limit=2)
    assert _names(first) == ["alpha", "beta"]
    # A token stays good when the model that it names goes away.
    container.unload("beta")
    token = json.loads(first.content)["nextPageToken"]
    second = container.get("/models", limit=2, next_page_token=token)
    assert _names(second) == ["gamma"]
    assert "nextPageToken" not in json.loads(second.content)
    assert container.get("/models", limit=0).refusal == (400, "INVALID_INPUT")


def test_each_load_and_generation_is_a_line_of_metrics(container: Container) -> None:
    container.load("alpha")
    container.invoke("alpha", steps=2)
    container.invoke("alpha", steps=2, format="webp")
    lines = [line for line in container.lines() if line["event"] == "metrics"][-3:]
    assert ["LoadMs" in line for line in lines] == [True, False, False]
    assert [line.get("SlotHits") for line in lines] == [None, 0, 1]
    assert {line["Model"] for line in lines} == {hashlib.sha256(b"alpha").hexdigest()[:12]}


@pytest.mark.parametrize("name", ["", "../alpha", "a/b", "a b", ".hidden", "x" * 129, "a\n"])
def test_a_bad_model_name_is_400(container: Container, name: str) -> None:
    folder = container.models / "alpha" / "model"
    body = {"model_name": name, "url": str(folder)}
    assert container.http.post("/models", json=body).json()["error"]["code"] == "INVALID_INPUT"


def test_a_url_outside_the_models_root_is_400(container: Container, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(container.models / "alpha" / "model", outside)
    link = container.models / "link"
    link.symlink_to(outside)
    for url in (
        outside,
        link,
        container.models,
        container.models / "alpha" / ".." / "alpha" / "model",
        container.models / "absent",
        container.models / "alpha" / "model" / artifact.MANIFEST,
        Path("alpha/model"),
    ):
        assert container.load("alpha", url).refusal == (400, "INVALID_INPUT"), url
    link.unlink()


def test_an_unknown_route_has_the_same_error_shape(container: Container) -> None:
    assert container.get("/etc/passwd").refusal == (404, "INVALID_INPUT")
    answer = container.http.put("/models", content=b"")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "INVALID_INPUT")


def test_unload_waits_while_an_image_is_drawn(container: Container) -> None:
    # Not under Triton 2.51: its unload waits for the request, and the request for the one HTTP
    # thread that both have (docs/serving-triton.md).
    container.load("alpha")
    with ThreadPoolExecutor(2) as pool:
        drawing = pool.submit(container.invoke, "alpha", prompt=HELD, steps=1)
        container.gate.wait_for(requests=1)
        unloading = pool.submit(container.unload, "alpha")
        until(lambda: container.get("/models/alpha").status, lambda status: status == 404)
        # However many others come and go meanwhile.
        for _ in range(3):
            assert container.load("beta").status == 200
            assert container.unload("beta").status == 200
        assert not unloading.done()
        container.gate.open()
        assert drawing.result().status == 200
        assert unloading.result().status == 200
    assert container.loaded() == []


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_bad_artifact_is_refused_and_takes_no_slot(
    container: Container, base: Path, damage: Callable[[Path, Path], object]
) -> None:
    folder = container.models / "damaged" / "model"
    shutil.rmtree(folder.parent, ignore_errors=True)
    write_artifact(folder, base, rank=4)
    damage(folder, base)
    answer = container.load("damaged")
    assert answer.refusal == (400, "ARTIFACT_INVALID"), answer.text
    assert str(container.models) not in answer.text
    assert container.loaded() == []

    shutil.rmtree(folder.parent)
    write_artifact(folder, base, rank=4)
    assert container.load("damaged").status == 200
