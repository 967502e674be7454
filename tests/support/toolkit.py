"""Our training as AWS's ``sagemaker-training`` toolkit runs it: a job whose code is a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from limner.contracts import artifact as form
from limner.contracts.training import TrainingConfig

REPOSITORY = Path(__file__).parents[2]
ENTRY = "training/toolkit/train.py"
# Given as hyperparameters, which the toolkit hands on as arguments, too.
CONFIG = TrainingConfig(
    steps=5,
    batch_size=2,
    rank=2,
    augmentations=2,
    subject="red ball",
    preview_prompts=("a photo of {token}",),
    preview_steps=2,
)
ENVIRONMENT = {"LIMNER_REQUEST_ID": "r1", "OMP_NUM_THREADS": "1", "TRAINING_JOB_NAME": "tuning-1"}


def submit_directory(folder: Path) -> Path:
    """What somebody gives the toolkit as source folder: the sources of the program."""
    for name in ("limner", "training"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    return folder


def describe_job(root: Path, submitted: Path) -> None:
    """Writes the config files of a job of the toolkit, over a prepared container."""
    ours = CONFIG.to_hyperparameters()
    # As the SDK writes them: each value is JSON inside of a string.
    theirs = {"sagemaker_program": ENTRY, "sagemaker_submit_directory": str(submitted)}
    hyperparameters = {**ours, **{name: json.dumps(value) for name, value in theirs.items()}}
    group = {"instance_group_name": "all", "instance_type": "local", "hosts": ["localhost"]}
    resources = {
        # The toolkit waits for ever for a host name that does not resolve.
        "current_host": "localhost",
        "hosts": ["localhost"],
        "current_group_name": "all",
        "instance_groups": [group],
        "network_interface_name": "lo",
    }
    for name, content in (("hyperparameters", hyperparameters), ("resourceconfig", resources)):
        (root / "input" / "config" / f"{name}.json").write_text(json.dumps(content))


def check_artifact(root: Path) -> None:
    """The artifact and the first image are there, and made by the hyperparameters."""
    model = root / "model"
    found = {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()}
    assert found == set(form.MEMBERS)
    manifest = form.Manifest.model_validate_json((model / form.MANIFEST).read_bytes())
    assert (manifest.request_id, manifest.config_sha256) == ("r1", CONFIG.digest())
    assert manifest.metrics["steps"] == CONFIG.steps
    assert [p.name for p in (root / "checkpoints").glob("*.png")] == ["preview-00.png"]
    assert not (root / "output" / "failure").exists()
