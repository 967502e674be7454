"""The multi-model container contract, against the real process over HTTP.

SageMaker acts on the status codes: 404 not loaded, 409 already loaded, 507 make room and try
again; and the process must answer /ping within 2 s whatever it draws.
"""

import base64
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from limner.contracts import artifact
from limner.contracts.generation import MAX_BODY_BYTES, GenerateResponse
from limner.contracts.training import TrainingConfig
from tests.support.artifacts import write_artifact, write_members
from tests.support.pipelines import save_random_pipeline

SLOTS = 3
MAX_RANK = 8
START_DEADLINE_S = 90
# SageMaker gives /ping 2 s (developer guide, how your container should respond to health checks).
PING_LIMIT_S = 2
PROMPT = "a photo of {token} with {braces} zebrapainting"


@dataclass
class Server:
    """A running container, its models root and its log."""

    process: subprocess.Popen[bytes]
    http: httpx.Client
    models: Path
    log: Path

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def load(self, name: str, folder: Path | None = None) -> httpx.Response:
        url = folder or self.models / name / "model"
        return self.http.post("/models", json={"model_name": name, "url": str(url)})

    def invoke(self, name: str, **body: object) -> httpx.Response:
        return self.http.post(f"/models/{name}/invoke", json={"prompt": PROMPT, **body})

    def loaded(self) -> list[str]:
        return [model["modelName"] for model in self.http.get("/models").json()["models"]]


def start(base: Path, folder: Path, **environment: str) -> Server:
    models, log = folder / "models", folder / "log.jsonl"
    models.mkdir(parents=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "inference.server"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "SAGEMAKER_BIND_TO_PORT": "0",
                "LIMNER_BIND_HOST": "127.0.0.1",
                "LIMNER_BASE_DIR": str(base),
                "LIMNER_MODELS_ROOT": str(models),
                "LIMNER_MAX_MODELS": str(SLOTS),
                "LIMNER_MAX_RANK": str(MAX_RANK),
                **environment,
            },
        )
    deadline = time.monotonic() + START_DEADLINE_S
    while not (ready := [line for line in _json_lines(log) if line["event"] == "ready"]):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    url = f"http://127.0.0.1:{ready[0]['port']}"
    return Server(process, httpx.Client(base_url=url, timeout=60), models, log)


def wait_until_drawing(server: Server) -> None:
    """Returns when the process, idle until now, has used a fifth of a second of CPU time."""

    def ticks() -> int:
        fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # utime and stime, see proc(5)

    until = ticks() + os.sysconf("SC_CLK_TCK") // 5
    deadline = time.monotonic() + 30
    while ticks() < until:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _json_lines(log: Path) -> list[dict[str, object]]:
    # The last line may be half written.
    return [json.loads(line) for line in log.read_text().split("\n")[:-1]]


def stop(server: Server) -> int:
    server.http.close()
    server.process.send_signal(signal.SIGTERM)
    return server.process.wait(timeout=30)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_pipeline(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def process(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start(base, tmp_path_factory.mktemp("server"))
    for seed, name in enumerate(("alpha", "beta", "gamma", "delta")):
        write_artifact(server.models / name / "model", base, seed=seed, target="all")
    yield server
    stop(server)


@pytest.fixture
def server(process: Server) -> Iterator[Server]:
    """The running container with all slots free."""
    yield process
    for name in process.loaded():
        process.http.delete(f"/models/{name}")


def code_of(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "retryable", "fault", "fix"}
    return answer.status_code, error["code"]


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image).astype(int)


def images(answer: httpx.Response) -> list[np.ndarray]:
    assert answer.status_code == 200, answer.text
    response = GenerateResponse.model_validate_json(answer.content)
    return [pixels(base64.b64decode(item.png_base64)) for item in response.images]


def test_ping(server: Server) -> None:
    assert server.http.get("/ping").status_code == 200


def test_load_list_get_invoke_unload(server: Server, base: Path) -> None:
    described = {"modelName": "alpha", "modelUrl": str(server.models / "alpha" / "model")}
    assert server.load("alpha").json() == described
    assert server.http.get("/models").json() == {"models": [described]}
    assert server.http.get("/models/alpha").json() == described

    answer = server.invoke("alpha", steps=4, images=2, seed=7)
    assert answer.headers["content-type"] == "application/json"
    response = GenerateResponse.model_validate_json(answer.content)
    manifest = artifact.Manifest.model_validate_json(
        (server.models / "alpha" / "model" / artifact.MANIFEST).read_bytes()
    )
    assert [item.seed for item in response.images] == [7, 8]
    assert response.prompt == PROMPT.replace("{token}", manifest.subject_phrase)
    assert response.adapter_sha256 == manifest.adapter_sha256
    assert response.base_id == manifest.base_id
    assert response.denoise_ms > 0
    assert all(image.shape == (32, 32, 3) for image in images(answer))

    assert server.http.delete("/models/alpha").status_code == 200
    assert server.http.get("/models").json() == {"models": []}
    assert code_of(server.invoke("alpha")) == (404, "MODEL_NOT_LOADED")


def test_loading_twice_is_409(server: Server) -> None:
    assert server.load("alpha").status_code == 200
    assert code_of(server.load("alpha")) == (409, "MODEL_ALREADY_LOADED")


def test_what_is_not_loaded_is_404(server: Server) -> None:
    absent = (404, "MODEL_NOT_LOADED")
    assert code_of(server.http.get("/models/alpha")) == absent
    assert code_of(server.http.delete("/models/alpha")) == absent
    assert code_of(server.invoke("alpha")) == absent


def test_a_full_endpoint_is_507_until_a_model_is_unloaded(server: Server) -> None:
    for name in ("alpha", "beta", "gamma"):
        assert server.load(name).status_code == 200
    assert code_of(server.load("delta")) == (507, "OUT_OF_MEMORY")
    assert code_of(server.http.get("/models/delta")) == (404, "MODEL_NOT_LOADED")
    assert server.http.delete("/models/beta").status_code == 200
    assert server.load("delta").status_code == 200
    assert server.loaded() == ["alpha", "delta", "gamma"]


def test_a_listing_comes_in_pages(server: Server) -> None:
    for name in ("alpha", "beta", "gamma"):
        server.load(name)
    first = server.http.get("/models", params={"limit": 2}).json()
    assert [model["modelName"] for model in first["models"]] == ["alpha", "beta"]
    query = {"limit": 2, "next_page_token": first["nextPageToken"]}
    # A token stays good when the model that it names goes away.
    server.http.delete("/models/beta")
    second = server.http.get("/models", params=query).json()
    assert [model["modelName"] for model in second["models"]] == ["gamma"]
    assert "nextPageToken" not in second
    assert code_of(server.http.get("/models", params={"limit": 0})) == (400, "INVALID_INPUT")


def test_a_seed_is_an_image_and_a_model_is_a_difference(server: Server) -> None:
    server.load("alpha")
    server.load("beta")
    batch = images(server.invoke("alpha", steps=4, images=3, seed=10))
    alone = images(server.invoke("alpha", steps=4, images=1, seed=11))[0]
    other = images(server.invoke("beta", steps=4, images=1, seed=11))[0]
    again = images(server.invoke("alpha", steps=4, images=3, seed=10))
    # Rounding may differ with the size of the batch, by one level in 255 at the most.
    assert np.abs(batch[1] - alone).max() <= 1
    assert all(np.array_equal(one, two) for one, two in zip(batch, again, strict=True))
    assert np.abs(batch[0] - batch[1]).mean() > 2
    assert np.abs(alone - other).mean() > 2


def test_size_and_guidance_are_obeyed(server: Server) -> None:
    server.load("alpha")
    wide = images(server.invoke("alpha", steps=2, height=40, width=64))[0]
    assert wide.shape == (40, 64, 3)
    plain = images(server.invoke("alpha", steps=4, guidance=1))[0]
    guided = images(server.invoke("alpha", steps=4, guidance=8))[0]
    assert not np.array_equal(plain, guided)


def test_one_image_can_be_answered_as_a_png(server: Server) -> None:
    server.load("alpha")
    url, accept = "/models/alpha/invoke", {"Accept": "image/png"}
    body = {"prompt": PROMPT, "steps": 4, "seed": 11}
    answer = server.http.post(url, json=body, headers=accept)
    assert answer.headers["content-type"] == "image/png"
    expected = images(server.invoke("alpha", steps=4, seed=11))[0]
    assert np.array_equal(pixels(answer.content), expected)
    two = server.http.post(url, json={**body, "images": 2}, headers=accept)
    assert code_of(two) == (400, "INVALID_INPUT")


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
        b'{"prompt": "' + b"x" * MAX_BODY_BYTES + b'"}',
    ],
    ids=lambda body: body[:32].decode(errors="replace"),
)
def test_a_bad_generation_is_400(server: Server, body: bytes) -> None:
    server.load("alpha")
    answer = server.http.post("/models/alpha/invoke", content=body)
    assert code_of(answer) == (400, "INVALID_INPUT")
    assert len(answer.content) < 2_000


@pytest.mark.parametrize("name", ["", "../alpha", "a/b", "a b", ".hidden", "x" * 129, "a\n"])
def test_a_bad_model_name_is_400(server: Server, name: str) -> None:
    folder = server.models / "alpha" / "model"
    assert code_of(server.load(name, folder)) == (400, "INVALID_INPUT")


def test_a_url_outside_the_models_root_is_400(server: Server, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(server.models / "alpha" / "model", outside)
    link = server.models / "link"
    link.symlink_to(outside)
    for url in (
        outside,
        link,
        server.models,
        server.models / "alpha" / ".." / "alpha" / "model",
        server.models / "absent",
        server.models / "alpha" / "model" / artifact.MANIFEST,
        Path("alpha/model"),
    ):
        assert code_of(server.load("alpha", url)) == (400, "INVALID_INPUT"), url
    link.unlink()


def test_an_unknown_route_has_the_same_error_shape(server: Server) -> None:
    assert code_of(server.http.get("/etc/passwd")) == (404, "INVALID_INPUT")
    assert code_of(server.http.put("/models", content=b"")) == (405, "INVALID_INPUT")


def _rewrite_manifest(folder: Path, **changes: object) -> None:
    path = folder / artifact.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _rewrite_packed(folder: Path, content: bytes) -> None:
    """Other packed bytes, with the hash that belongs to them."""
    (folder / artifact.PACKED).write_bytes(content)
    _rewrite_manifest(folder, packed_sha256=hashlib.sha256(content).hexdigest())


def _save_packed(folder: Path, tensors: dict[str, np.ndarray], layout: str | None = None) -> None:
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    metadata = {artifact.PACKED_LAYOUT_KEY: layout or manifest["layout_sha256"]}
    save_file(tensors, folder / artifact.PACKED, metadata=metadata)
    _rewrite_packed(folder, (folder / artifact.PACKED).read_bytes())


def _with_weight(value: float) -> Callable[[Path, Path], None]:
    def damage(folder: Path, base: Path) -> None:
        tensors = load_file(folder / artifact.ADAPTER)
        next(iter(tensors.values())).flat[3] = value
        manifest = json.loads((folder / artifact.MANIFEST).read_text())
        config = TrainingConfig(rank=manifest["rank"])
        write_members(folder, base, tensors, config, tuple(manifest["target_modules"]))

    return damage


def _cut(folder: Path, _: Path) -> None:
    _rewrite_packed(folder, (folder / artifact.PACKED).read_bytes()[:-1000])


def _flip_a_bit(name: str) -> Callable[[Path, Path], None]:
    def damage(folder: Path, _: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-5] ^= 1
        (folder / name).write_bytes(content)

    return damage


def _link(folder: Path, _: Path) -> None:
    target = folder.parent / "elsewhere"
    (folder / artifact.ADAPTER).rename(target)
    (folder / artifact.ADAPTER).symlink_to(target)


def _link_folder(folder: Path, _: Path) -> None:
    (folder / "1").rename(folder.parent / "one")
    (folder / "1").symlink_to(folder.parent / "one")


def _packed_of(dtype: type, size: int = 0) -> Callable[[Path, Path], None]:
    def damage(folder: Path, _: Path) -> None:
        flat = load_file(folder / artifact.PACKED)[artifact.PACKED_TENSOR]
        _save_packed(folder, {artifact.PACKED_TENSOR: flat.astype(dtype)[size:]})

    return damage


def _other_tensor(folder: Path, _: Path) -> None:
    _save_packed(folder, load_file(folder / artifact.ADAPTER))


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "missing adapter": lambda folder, _: (folder / artifact.ADAPTER).unlink(),
    "missing shell": lambda folder, _: (folder / artifact.TRITON_SHELL).unlink(),
    "missing manifest": lambda folder, _: (folder / artifact.MANIFEST).unlink(),
    "extra file": lambda folder, _: (folder / "extra.bin").write_bytes(b"x"),
    "extra file in a folder": lambda folder, _: (folder / "1" / "x.py").write_text(""),
    "extra folder": lambda folder, _: (folder / "2").mkdir(),
    "link": _link,
    "linked folder": _link_folder,
    "manifest is no JSON": lambda folder, _: (folder / artifact.MANIFEST).write_text("nope"),
    "manifest is huge": lambda folder, _: _rewrite_manifest(folder, request_id="x" * 300_000),
    "manifest of another schema": lambda folder, _: _rewrite_manifest(folder, schema_version=2),
    "manifest with more": lambda folder, _: _rewrite_manifest(folder, more=1),
    "adapter has another hash": _flip_a_bit(artifact.ADAPTER),
    "packed has another hash": _flip_a_bit(artifact.PACKED),
    "packed is cut": _cut,
    "packed is empty": lambda folder, _: _rewrite_packed(folder, b""),
    "packed is a pickle": lambda folder, _: _rewrite_packed(folder, pickle.dumps({"a": 1})),
    "packed holds integers": _packed_of(np.int32),
    "packed is too short": _packed_of(np.float32, size=1),
    "packed has other tensors": _other_tensor,
    "packed has another layout": lambda folder, _: _save_packed(
        folder, load_file(folder / artifact.PACKED), layout="0" * 64
    ),
    "not a number": _with_weight(float("nan")),
    "infinite": _with_weight(float("inf")),
    "rank of another layout": lambda folder, _: _rewrite_manifest(folder, rank=2),
    "rank over the limit": lambda folder, _: _rewrite_manifest(folder, rank=MAX_RANK + 1),
    "absurd rank": lambda folder, _: _rewrite_manifest(folder, rank=10**12),
    "unknown layer": lambda folder, _: _rewrite_manifest(folder, target_modules=["to_q", "to_z"]),
    "no layer": lambda folder, _: _rewrite_manifest(folder, target_modules=[]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_bad_artifact_is_refused_and_takes_no_slot(
    server: Server, base: Path, damage: Callable[[Path, Path], object]
) -> None:
    folder = server.models / "damaged" / "model"
    shutil.rmtree(folder.parent, ignore_errors=True)
    write_artifact(folder, base, rank=4)
    damage(folder, base)
    answer = server.load("damaged")
    assert code_of(answer) == (400, "ARTIFACT_INVALID"), answer.text
    assert str(server.models) not in answer.text
    assert server.loaded() == []

    shutil.rmtree(folder.parent)
    write_artifact(folder, base, rank=4)
    assert server.load("damaged").status_code == 200


def test_an_adapter_of_another_base_is_refused(server: Server, base: Path, tmp_path: Path) -> None:
    other = save_random_pipeline(tmp_path / "other", seed=1)
    write_artifact(server.models / "foreign" / "model", other)
    assert code_of(server.load("foreign")) == (400, "ARTIFACT_WRONG_BASE")


def test_ping_answers_and_unload_waits_while_an_image_is_drawn(server: Server) -> None:
    server.load("alpha")
    with ThreadPoolExecutor(2) as pool:
        drawing = pool.submit(server.invoke, "alpha", steps=100, images=4)
        wait_until_drawing(server)
        unloading_since = time.monotonic()
        unloading = pool.submit(server.http.delete, "/models/alpha")
        slowest_s, pings = 0.0, 0
        while not drawing.done():
            started = time.monotonic()
            assert server.http.get("/ping").status_code == 200
            slowest_s = max(slowest_s, time.monotonic() - started)
            pings += 1
        drawing_s = time.monotonic() - unloading_since
        assert len(images(drawing.result())) == 4
        assert unloading.result().status_code == 200
    assert pings > 3, "the drawing was too short to test anything"
    # Unloading takes some milliseconds by itself. It ends with the drawing, which is a little
    # before the answer with the encoded images.
    assert unloading.result().elapsed.total_seconds() > drawing_s / 2
    assert server.loaded() == []
    assert slowest_s < PING_LIMIT_S, f"{pings} pings, the slowest took {slowest_s:.2f} s"


def test_the_log_has_timings_but_no_prompt_and_no_user(server: Server) -> None:
    server.load("alpha")
    server.http.post(
        "/models/alpha/invoke",
        json={"prompt": PROMPT, "steps": 2, "negative_prompt": "zebranegative"},
        headers={"X-Amzn-SageMaker-Target-Model": "zebrauser/default/v1.tar.gz"},
    )
    server.http.post("/models/alpha/invoke", json={"prompt": {"zebra": "prompt"}})
    lines = server.lines()
    assert "zebra" not in server.log.read_text()
    load = [line for line in lines if line["event"] == "load"][-1]
    assert load["status"] == 200
    assert isinstance(load["load_ms"], float)
    drawn = [line for line in lines if line["event"] == "invoke" and line["status"] == 200][-1]
    assert {"queue_ms", "denoise_ms", "total_ms", "target"} <= set(drawn)


def test_each_load_and_generation_is_a_line_of_metrics(server: Server) -> None:
    server.load("alpha")
    server.invoke("alpha", steps=2)
    server.invoke("alpha", steps=2, format="webp")
    lines = [line for line in server.lines() if line["event"] == "metrics"][-3:]
    assert ["LoadMs" in line for line in lines] == [True, False, False]
    assert [line.get("SlotHits") for line in lines] == [None, 0, 1]
    assert {line["Model"] for line in lines} == {hashlib.sha256(b"alpha").hexdigest()[:12]}


def test_users_who_ask_at_once_are_drawn_together(server: Server) -> None:
    names = ("alpha", "beta", "gamma")
    for name in names:
        server.load(name)
    alone = [images(server.invoke(name, steps=20, seed=3))[0] for name in names]
    with ThreadPoolExecutor(len(names)) as pool:
        asked = [pool.submit(server.invoke, name, steps=20, seed=3) for name in names]
        crowd = [images(answer.result())[0] for answer in asked]
    worst = max(np.abs(one - two).max() for one, two in zip(crowd, alone, strict=True))
    sys.stdout.write(f"three users at once: {worst} of 255 from alone\n")
    assert worst <= 1
    assert np.abs(alone[0] - alone[1]).mean() > 2


def test_sigterm_lets_a_running_request_end(base: Path, tmp_path: Path) -> None:
    server = start(base, tmp_path)
    write_artifact(server.models / "alpha" / "model", base)
    server.load("alpha")
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(server.invoke, "alpha", steps=80, images=2)
        wait_until_drawing(server)
        assert not drawing.done()
        server.process.send_signal(signal.SIGTERM)
        assert len(images(drawing.result())) == 2
    assert server.process.wait(timeout=30) == 0
    server.http.close()
    assert server.lines()[-1]["event"] == "stopped"


def test_a_base_that_is_none_is_told_and_ends_the_process(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "inference.server"],
        env={**os.environ, "LIMNER_BASE_DIR": str(tmp_path), "LIMNER_BIND_HOST": "127.0.0.1"},
        capture_output=True,
        timeout=START_DEADLINE_S,
        check=False,
    )
    assert answer.returncode == 1
    assert json.loads(answer.stdout.splitlines()[-1])["code"] == "BASE_INVALID"
