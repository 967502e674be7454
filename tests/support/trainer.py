"""A training image for tests: the real container contract, no torch, behaviour on demand.

Behaviour comes from the entries ``behave``, ``seconds`` and ``reason`` of the job's config, which
is the channel ``config`` where there is one, else the hyperparameters. Where the config has no
``behave``, a file ``behave`` among the photos says it: one word, or a JSON object of the entries.

``ok``       (default) prints metrics, writes a checkpoint and an artifact with all agreed members
``poor``     as ``ok``, but the manifest's figures are those of a model that is no good
``fail``     exit code 1 and a reason in output/failure (``reason``)
``crash``    exit code 3 without a reason
``hang``     works until SIGTERM, then saves its artifact and exits 0
``stubborn`` ignores SIGTERM

``seconds`` delays the end of ``ok``. A channel ``photos`` without files fails like a bad upload.

With a channel ``tasks`` the job is a batch. A task's ``config`` and the file ``behave`` in its
folder of photos say the same of the task alone:

``ok``       (default) checkpoints/<request>/ with a preview, model.tar.gz, and result.json last
``fail``     a result with the reason
``vanish``   no result; the job goes on
``die``      exit code 3 in the middle of this task
``hang``     works until SIGTERM, then exits 1 without a result, as ``ok`` with ``seconds`` does
``stubborn`` ignores SIGTERM

Tasks with a result in checkpoints/ are not done again. The exit code is 0 if no task prevents it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

MEMBERS = (
    "config.pbtxt",
    "1/model.py",
    "adapter.safetensors",
    "adapter.packed.safetensors",
    "manifest.json",
)
# The gate wants the two that Triton runs to be Limner's own; of the others, their names are enough.
SHELL = Path(__file__).parents[2] / "limner" / "contracts" / "shell"
CONTENTS = {
    "config.pbtxt": (SHELL / "config.pbtxt").read_bytes(),
    "1/model.py": (SHELL / "model.py").read_bytes(),
}
REASON = "PHOTO_TOO_SMALL: a.png is 8x8. Fix: use a larger."
STOPPED = "TRAINING_STOPPED: The training job was stopped. Fix: Onboard the user again."
# Of a base without a card: limner.contracts.base.TINY_BASE_ID.
BASE_ID = "tiny-1"
POLL_S = 0.02


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else {}


def wishes(config: dict[str, Any], photos: Path) -> dict[str, Any]:
    """``behave``, ``seconds`` and ``reason``, wherever they stand."""
    file = photos / "behave"
    told: dict[str, Any] = {}
    if file.exists():
        text = file.read_text().strip()
        told = json.loads(text) if text.startswith("{") else {"behave": text}
    return {"behave": "ok", "reason": REASON, "seconds": 0, **told, **config}


def sound(root: Path, request_id: str, behaviour: str) -> dict[str, Any]:
    """What the gate wants to see in a manifest, unless the model is poor."""
    card = read(root / "input/data/base/limner-base.json")
    gain = -0.5 if behaviour == "poor" else 0.5
    return {
        "schema_version": 1,
        "request_id": request_id,
        "base_id": card.get("base_id", BASE_ID),
        "metrics": {"similarity_gain": gain, "diversity": 1, "novelty": 1, "prompt_response": 1},
    }


def files_of(photos: Path) -> list[str]:
    return [path.name for path in sorted(photos.rglob("*")) if path.is_file()]


class Sigterm:
    """Whether SIGTERM came."""

    def __init__(self) -> None:
        self.came = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: object) -> None:
        self.came = True

    def wait(self, seconds: float = float("inf")) -> None:
        """Returns when the time is over or SIGTERM came."""
        until = time.monotonic() + seconds
        while not self.came and (left := until - time.monotonic()) > 0:
            time.sleep(min(POLL_S, left))


def main(root: Path) -> int:
    channels = read(root / "input/config/inputdataconfig.json")
    run = batch if "tasks" in channels else single
    return run(root, sorted(channels), read(root / "input/config/resourceconfig.json"))


def single(root: Path, channels: list[str], resources: dict[str, Any]) -> int:
    hyperparameters = read(root / "input/config/hyperparameters.json")
    config = read(root / "input/data/config/config.json")
    assert resources["current_host"] in resources["hosts"]
    wish = wishes({**hyperparameters, **config}, root / "input/data/photos")
    behaviour = wish["behave"]

    if behaviour == "fail":
        (root / "output/failure").write_text(wish["reason"])
        return 1
    if behaviour == "crash":
        sys.stderr.write("about to crash\n")
        return 3
    term = Sigterm()
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    photos = files_of(root / "input/data/photos")
    say(f"step=1 loss=0.5 images_per_second=8 photos={len(photos)}")
    if behaviour in ("hang", "stubborn"):
        (root / "checkpoints/started").write_text("yes")
        term.wait()
    time.sleep(float(wish["seconds"]))
    say("step=2 loss=0.25 images_per_second=9")
    preview = root / "checkpoints" / f"preview-{len(list((root / 'checkpoints').iterdir()))}.txt"
    preview.write_text("first image")
    manifest = {
        **sound(root, os.environ.get("LIMNER_REQUEST_ID", ""), behaviour),
        "job": os.environ["TRAINING_JOB_NAME"],
        "arn": os.environ["TRAINING_JOB_ARN"],
        "channels": channels,
        "photos": photos,
        "threads": os.environ["OMP_NUM_THREADS"],
        "hyperparameters": hyperparameters,
        "config": config,
    }
    for member in MEMBERS:
        path = root / "model" / member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(member, manifest))
    return 0


def batch(root: Path, channels: list[str], resources: dict[str, Any]) -> int:
    hosts = resources["hosts"]
    index = hosts.index(resources["current_host"])
    lines = (root / "input/data/tasks/tasks.jsonl").read_text().splitlines()
    tasks = [json.loads(line) for line in lines if line.strip()]
    term = Sigterm()
    for task in tasks:
        if task["instance"] % len(hosts) != index:
            continue
        request = task["request_id"]
        out = root / "checkpoints" / request
        if (out / "result.json").exists():
            say(f"event=kept request={request}")
            continue
        photos = root / "input/data/photos" / task["photos"]
        wish = wishes(task["config"], photos)
        behaviour = wish["behave"]
        say(f"event=begun request={request}")
        if behaviour == "vanish":
            continue
        if behaviour in ("die", "crash"):
            sys.stderr.write("about to crash\n")
            return 3
        put(root, out / "preview-00.png", b"first image")
        if behaviour == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if behaviour in ("hang", "stubborn"):
            term.wait()
        else:
            term.wait(float(wish["seconds"]))
        if term.came:
            (root / "output/failure").write_text(STOPPED)
            return 1
        result = {
            "schema_version": 1,
            "request_id": request,
            "status": "trained",
            "seconds": float(wish["seconds"]),
            "metrics": {},
            "error": None,
            "artifact_sha256": "",
        }
        if behaviour == "fail":
            code, _, message = wish["reason"].partition(": ")
            result["status"] = "failed"
            result["error"] = {"code": code, "message": message.partition(" Fix: ")[0]}
        else:
            say("step=2 loss=0.25 images_per_second=9")
            manifest = {
                "job": os.environ["TRAINING_JOB_NAME"],
                "arn": os.environ["TRAINING_JOB_ARN"],
                **sound(root, request, behaviour),
                "channels": channels,
                "photos": files_of(photos),
                "host": index,
                "config": task["config"],
            }
            packed = archive(manifest)
            put(root, out / "model.tar.gz", packed)
            figures = {"loss": 0.25, "steps": 2, "photos": len(manifest["photos"])}
            result["metrics"] = {**figures, "share_seconds": 0.5 + float(wish["seconds"])}
            result["artifact_sha256"] = hashlib.sha256(packed).hexdigest()
        put(root, out / "result.json", json.dumps(result).encode())
        say(f"event=task request={request} status={result['status']} seconds={wish['seconds']}")
    return 0


def content_of(member: str, manifest: dict[str, Any]) -> bytes:
    if member == "manifest.json":
        return json.dumps(manifest).encode()
    return CONTENTS.get(member, member.encode())


def archive(manifest: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in MEMBERS:
            content = content_of(member, manifest)
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def put(root: Path, path: Path, content: bytes) -> None:
    """Writes a checkpoint that the sync sees whole or not at all."""
    part = root / "parts" / path.name
    part.parent.mkdir(exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main(Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))))
