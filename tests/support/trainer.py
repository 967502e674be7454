"""A training image for tests: the real container contract, no torch, behaviour on demand.

Behaviour comes from the hyperparameter ``behave`` or, where that is absent, from a file
``behave`` in the channel ``photos``:

``ok``       (default) prints metrics, writes a checkpoint and an artifact with all agreed members
``fail``     exit code 1 and a reason in output/failure (hyperparameter ``reason``)
``crash``    exit code 3 without a reason
``hang``     works until SIGTERM, then saves its artifact and exits 0
``stubborn`` ignores SIGTERM

``seconds`` delays the end of ``ok``. A channel ``photos`` without files fails like a bad upload.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

MEMBERS = (
    "config.pbtxt",
    "1/model.py",
    "adapter.safetensors",
    "adapter.packed.safetensors",
    "manifest.json",
)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(root: Path) -> int:
    hyperparameters = json.loads((root / "input/config/hyperparameters.json").read_text())
    channels = json.loads((root / "input/config/inputdataconfig.json").read_text())
    hosts = json.loads((root / "input/config/resourceconfig.json").read_text())
    assert hosts["current_host"] in hosts["hosts"]
    photos = sorted(p for p in (root / "input/data/photos").rglob("*") if p.is_file())
    wish = root / "input/data/photos/behave"
    behaviour = hyperparameters.get("behave") or (wish.read_text() if wish.exists() else "ok")

    if behaviour == "fail":
        reason = hyperparameters.get("reason", "PHOTO_TOO_SMALL: a.png is 8x8. Fix: use a larger.")
        (root / "output/failure").write_text(reason)
        return 1
    if behaviour == "crash":
        sys.stderr.write("about to crash\n")
        return 3
    stopped = []
    handler = signal.SIG_IGN if behaviour == "stubborn" else lambda *_: stopped.append(True)
    signal.signal(signal.SIGTERM, handler)
    say(f"step=1 loss=0.5 images_per_second=8 photos={len(photos)}")
    if behaviour in ("hang", "stubborn"):
        (root / "checkpoints/started").write_text("yes")
        while not stopped:
            time.sleep(0.02)
    time.sleep(float(hyperparameters.get("seconds", "0")))
    say("step=2 loss=0.25 images_per_second=9")
    preview = root / "checkpoints" / f"preview-{len(list((root / 'checkpoints').iterdir()))}.txt"
    preview.write_text("first image")
    manifest = {
        "job": os.environ["TRAINING_JOB_NAME"],
        "arn": os.environ["TRAINING_JOB_ARN"],
        "request_id": os.environ.get("LIMNER_REQUEST_ID", ""),
        "channels": sorted(channels),
        "photos": [p.name for p in photos],
        "threads": os.environ["OMP_NUM_THREADS"],
        "hyperparameters": hyperparameters,
    }
    for member in MEMBERS:
        path = root / "model" / member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest) if member == "manifest.json" else member)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))))
