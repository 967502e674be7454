"""The multi-model container contract, against real processes of both shells over HTTP.

SageMaker acts on the status codes: 404 not loaded, 409 already loaded, 507 make room and try
again; and the process must answer /ping within 2 s whatever it draws.
"""

import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limner.contracts import artifact
from limner.contracts.generation import MAX_BODY_BYTES, GenerateResponse
from tests.support import hanging, scarce
from tests.support.artifacts import write_artifact
from tests.support.containers import (
    PROMPT,
    REPOSITORY,
    SHELLS,
    START_DEADLINE_S,
    STOP_DEADLINE_S,
    Answer,
    Container,
    TritonContainer,
    triton_environment,
)
from tests.support.held import HELD
from tests.support.laptop import until
from tests.support.pipelines import save_random_pipeline

# SageMaker gives /ping 2 s (developer guide, how your container should respond to health checks).
PING_LIMIT_S = 2


def _started(
    shell: type[Container], base: Path, factory: pytest.TempPathFactory
) -> Iterator[Container]:
    container = shell.start(base, factory.mktemp("c"), scarce=True)
    for seed, name in enumerate(("alpha", "beta", "gamma", "delta")):
        write_artifact(container.models / name / "model", base, seed=seed, target="all")
    yield container
    assert container.stop() == 0


@pytest.fixture(scope="module")
def asgi(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    yield from _started(Container, base, tmp_path_factory)


@pytest.fixture(scope="module")
def triton(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    yield from _started(TritonContainer, base, tmp_path_factory)


@pytest.fixture(scope="module", params=SHELLS)
def running(request: pytest.FixtureRequest) -> Container:
    """The running container of each shell, with whatever models are left."""
    container: Container = request.getfixturevalue(request.param)
    return container


@pytest.fixture
def container(running: Container) -> Container:
    """The running container with all slots free."""
    for name in running.loaded():
        assert running.unload(name).status == 200
    return running


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image).astype(int)


def images(answer: Answer) -> list[np.ndarray]:
    assert answer.status == 200, answer.text
    assert answer.media_type == "application/json"
    response = GenerateResponse.model_validate_json(answer.content)
    return [pixels(base64.b64decode(item.png_base64)) for item in response.images]


def refused(container: Container, answer: Answer, status: int, code: str) -> bool:
    """Whether the answer is this error; Triton says 404 and 409 in its own words, or in none."""
    return answer.refusal == (status, code if container.own_refusals else "")


def test_ping(container: Container) -> None:
    assert container.get("/ping").status == 200


def test_load_list_get_invoke_unload(container: Container) -> None:
    assert container.load("alpha").status == 200
    assert container.loaded() == ["alpha"]
    described = {"modelName": "alpha", "modelUrl": str(container.url("alpha"))}
    assert json.loads(container.get("/models/alpha").content) == described
    listed = json.loads(container.get("/models").content)["models"]
    # Triton 2.51 looks for its models by the platform's hash, finds none, and says nothing of them.
    assert listed == [described if container.own_refusals else {}]

    answer = container.invoke("alpha", steps=4, images=2, seed=7)
    response = GenerateResponse.model_validate_json(answer.content)
    manifest = artifact.Manifest.model_validate_json(
        (container.models / "alpha" / "model" / artifact.MANIFEST).read_bytes()
    )
    assert [item.seed for item in response.images] == [7, 8]
    assert response.prompt == PROMPT.replace("{token}", manifest.subject_phrase)
    assert response.adapter_sha256 == manifest.adapter_sha256
    assert response.base_id == manifest.base_id
    assert response.denoise_ms > 0
    assert all(image.shape == (32, 32, 3) for image in images(answer))

    assert container.unload("alpha").status == 200
    assert json.loads(container.get("/models").content) == {"models": []}
    assert refused(container, container.invoke("alpha"), 404, "MODEL_NOT_LOADED")


def test_loading_twice_is_409(container: Container) -> None:
    assert container.load("alpha").status == 200
    assert refused(container, container.load("alpha"), 409, "MODEL_ALREADY_LOADED")


def test_what_is_not_loaded_is_404(container: Container) -> None:
    for answer in (
        container.get("/models/alpha"),
        container.unload("alpha"),
        container.invoke("alpha"),
    ):
        assert refused(container, answer, 404, "MODEL_NOT_LOADED")


def test_what_is_not_there_cannot_be_loaded(container: Container) -> None:
    answer = container.load("absent")
    assert refused(container, answer, 400, "INVALID_INPUT")


def test_a_full_endpoint_is_507_until_a_model_is_unloaded(container: Container) -> None:
    for name in ("alpha", "beta", "gamma"):
        assert container.load(name).status == 200
    assert container.load("delta").refusal == (507, "OUT_OF_MEMORY")
    assert refused(container, container.get("/models/delta"), 404, "MODEL_NOT_LOADED")
    assert container.unload("beta").status == 200
    assert container.load("delta").status == 200
    assert container.loaded() == ["alpha", "delta", "gamma"]


def test_no_memory_for_an_image_is_507_and_the_model_stays(container: Container) -> None:
    container.load("alpha")
    answer = container.invoke("alpha", prompt=scarce.GREEDY)
    assert answer.refusal == (507, "OUT_OF_MEMORY")
    assert len(images(container.invoke("alpha", steps=2))) == 1


def test_a_model_can_be_loaded_again(container: Container) -> None:
    container.load("alpha")
    before = images(container.invoke("alpha", steps=2))[0]
    assert container.unload("alpha").status == 200
    assert refused(container, container.unload("alpha"), 404, "MODEL_NOT_LOADED")
    assert container.load("alpha").status == 200
    assert np.array_equal(images(container.invoke("alpha", steps=2))[0], before)


def test_a_seed_is_an_image_and_a_model_is_a_difference(container: Container) -> None:
    container.load("alpha")
    container.load("beta")
    batch = images(container.invoke("alpha", steps=4, images=3, seed=10))
    alone = images(container.invoke("alpha", steps=4, images=1, seed=11))[0]
    other = images(container.invoke("beta", steps=4, images=1, seed=11))[0]
    again = images(container.invoke("alpha", steps=4, images=3, seed=10))
    # Rounding may differ with the size of the batch, by one level in 255 at the most.
    assert np.abs(batch[1] - alone).max() <= 1
    assert all(np.array_equal(one, two) for one, two in zip(batch, again, strict=True))
    assert np.abs(batch[0] - batch[1]).mean() > 2
    assert np.abs(alone - other).mean() > 2


def test_size_and_guidance_are_obeyed(container: Container) -> None:
    container.load("alpha")
    wide = images(container.invoke("alpha", steps=2, height=40, width=64))[0]
    assert wide.shape == (40, 64, 3)
    plain = images(container.invoke("alpha", steps=4, guidance=1))[0]
    guided = images(container.invoke("alpha", steps=4, guidance=8))[0]
    assert not np.array_equal(plain, guided)


def test_one_image_can_be_answered_as_a_png(container: Container) -> None:
    container.load("alpha")
    answer = container.invoke("alpha", accept="image/png", steps=4, seed=11)
    assert answer.media_type == "image/png"
    expected = images(container.invoke("alpha", steps=4, seed=11))[0]
    assert np.array_equal(pixels(answer.content), expected)
    two = container.invoke("alpha", accept="image/png", steps=4, images=2)
    assert two.refusal == (400, "INVALID_INPUT")


def test_requests_of_several_users_at_once(container: Container) -> None:
    names = ("alpha", "beta", "gamma")
    for name in names:
        container.load(name)
    alone = {name: images(container.invoke(name, steps=4, seed=5))[0] for name in names}
    with ThreadPoolExecutor(12) as pool:
        asked = [(name, pool.submit(container.invoke, name, steps=4, seed=5)) for name in names * 4]
        for name, answer in asked:
            assert np.abs(images(answer.result())[0] - alone[name]).max() <= 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"{}",
        b'{"prompt": ""}',
        b'{"prompt": "x", "steps": 0}',
        b'{"prompt": "x", "steps": 101}',
        b'{"prompt": "x", "guidance": NaN}',
        b'{"prompt": "x", "images": 9}',
        b'{"prompt": "x", "height": 33}',
        b'{"prompt": "x", "unknown": 1}',
        b'{"prompt": "x", "OOM MemoryError": 1}',
        b'{"prompt": "' + b"x" * MAX_BODY_BYTES + b'"}',
    ],
    ids=lambda body: body[:32].decode(errors="replace"),
)
def test_a_bad_generation_is_400(running: Container, body: bytes) -> None:
    running.load("alpha")
    answer = running.invoke_raw("alpha", body)
    assert answer.refusal == (400, "INVALID_INPUT")
    assert len(answer.content) < 2_000


def test_an_adapter_of_another_base_is_refused(container: Container, tmp_path: Path) -> None:
    other = save_random_pipeline(tmp_path / "other", seed=1)
    write_artifact(container.models / "foreign" / "model", other)
    assert container.load("foreign").refusal == (400, "ARTIFACT_WRONG_BASE")


def test_ping_answers_while_an_image_is_drawn(container: Container) -> None:
    container.load("alpha")
    with ThreadPoolExecutor(1) as pool:
        begins = container.when_drawing()
        drawing = pool.submit(container.invoke, "alpha", steps=100, images=2, height=128, width=128)
        begins()
        took_s: list[float] = []
        while not drawing.done():
            started = time.monotonic()
            assert container.get("/ping").status == 200
            took_s.append(time.monotonic() - started)
        assert drawing.result().status == 200
    assert len(took_s) > 3, "the drawing was too short to test anything"
    assert max(took_s) < PING_LIMIT_S, f"{len(took_s)} pings, the slowest {max(took_s):.2f} s"


def test_the_log_has_timings_but_no_prompt_and_no_user(container: Container) -> None:
    container.load("alpha")
    container.invoke("alpha", steps=2, negative_prompt="zebranegative")
    container.invoke("alpha", prompt={"zebra": "prompt"})
    container.load("absent")
    lines = container.lines()
    assert "zebra" not in container.log.read_text()
    load = [line for line in lines if line["event"] == "load" and line["status"] == 200][-1]
    assert isinstance(load["load_ms"], float)
    drawn = [line for line in lines if line["event"] == "invoke" and line["status"] == 200][-1]
    assert {"queue_ms", "denoise_ms", "total_ms", "target"} <= set(drawn)


def test_both_shells_draw_the_same_image(
    asgi: Container, triton: Container, record_property
) -> None:
    differences = []
    for name in ("alpha", "beta"):
        asgi.load(name)
        triton.load(name)
        ours = images(asgi.invoke(name, steps=8, images=2, seed=3))
        theirs = images(triton.invoke(name, steps=8, images=2, seed=3))
        differences += [np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)]
    figure = f"Triton and ASGI shell, 4 images of 2 users: {max(differences)} of 255 apart"
    record_property("figure", figure)
    assert max(differences) <= 1


def of_alpha(shell: str, base: Path, folder: Path, **options: Any) -> Container:
    """A container of its own, with one model loaded."""
    container = SHELLS[shell].start(base, folder, **options)
    write_artifact(container.models / "alpha" / "model", base)
    assert container.load("alpha").status == 200
    return container


@pytest.mark.parametrize("shell", SHELLS)
def test_a_container_that_can_draw_no_more_answers_and_says_so(
    shell: str, base: Path, tmp_path: Path
) -> None:
    """So that the platform starts it anew: by /ping, or by its end where Triton answers /ping."""
    container = of_alpha(shell, base, tmp_path, scarce=True)
    assert container.get("/ping").status == 200
    answer = container.invoke("alpha", prompt=scarce.FATAL)
    assert answer.refusal[1] == "INTERNAL", answer.text
    if shell == "triton":
        assert container.process.wait(timeout=90) == 1
        container.http.close()
    else:
        until(lambda: container.get("/ping").status, lambda status: status == 500)
        assert container.invoke("alpha").refusal == (502, "GENERATION_FAILED")
        assert container.stop() == 0


@pytest.mark.parametrize("prompt", [hanging.PROMPT_HANGS, hanging.IMAGES_HANG])
@pytest.mark.parametrize("shell", SHELLS)
def test_a_check_that_never_returns_costs_answers_and_then_the_container(
    shell: str, base: Path, tmp_path: Path, prompt: str
) -> None:
    check = {"LIMNER_SAFETY": "tests.support.hanging:CHECK"}
    container = of_alpha(shell, base, tmp_path, extra=check)
    assert container.invoke("alpha", steps=1).status == 200
    answer = container.invoke("alpha", prompt=prompt, steps=1)
    assert answer.refusal == (400 if shell == "triton" else 504, "DEADLINE_EXCEEDED")
    if shell == "triton":
        assert container.process.wait(timeout=90) == 1
        container.http.close()
    else:
        until(lambda: container.get("/ping").status, lambda status: status == 500)
        assert container.stop() == 0, "the call that hangs keeps nobody"


@pytest.mark.parametrize("shell", SHELLS)
def test_sigterm_while_a_check_hangs_is_answered(shell: str, base: Path, tmp_path: Path) -> None:
    extra = {"LIMNER_SAFETY": "tests.support.hanging:PATIENT", "LIMNER_GRACE_S": "3"}
    container = of_alpha(shell, base, tmp_path, extra=extra)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(container.invoke, "alpha", prompt=hanging.IMAGES_HANG, steps=1)
        until(lambda: [line["event"] for line in container.lines()], lambda e: "content" in e)
        container.process.terminate()
        assert container.process.wait(STOP_DEADLINE_S) == 0, "it ends before SIGKILL"
        assert asked.result().refusal[1] == "GENERATION_FAILED"
    container.http.close()
    assert "stopped" in [line["event"] for line in container.lines()]


@pytest.mark.parametrize("shell", SHELLS)
def test_sigterm_lets_a_running_request_end(shell: str, base: Path, tmp_path: Path) -> None:
    container = of_alpha(shell, base, tmp_path, scarce=True)
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(container.invoke, "alpha", prompt=HELD, steps=20, images=8)
        container.gate.wait_for(requests=1)
        container.process.terminate()
        container.gate.open()
        assert len(images(drawing.result())) == 8
    assert container.stop() == 0
    assert "stopped" in [line["event"] for line in container.lines()]


@pytest.mark.parametrize("module", ["inference.server", "inference.triton.serve"])
def test_a_base_that_is_none_is_told_and_ends_the_process(module: str, tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", module],
        env={
            **os.environ,
            **triton_environment(tmp_path),
            "LIMNER_BASE_DIR": str(tmp_path),
            "LIMNER_BIND_HOST": "127.0.0.1",
        },
        cwd=REPOSITORY,
        capture_output=True,
        timeout=START_DEADLINE_S,
        check=False,
    )
    assert answer.returncode == 1
    assert json.loads(answer.stdout.splitlines()[-1])["code"] == "BASE_INVALID"
