"""Two hosts of one job, as two processes that share a bucket: who is done early takes over."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from PIL import Image

from limner import local
from limner.contracts.tasks import Task
from limner.contracts.training import TrainingConfig
from tests.support.pipelines import save_random_pipeline

REPOSITORY = Path(__file__).parents[2]
LONG = TrainingConfig(steps=120, batch_size=2, rank=2, augmentations=1, preview_prompts=())
TASKS = [f"r{number}" for number in range(6)]
HOSTS = ("algo-1", "algo-2")
PREFIX = "batches/b1/1/claims/"
AWS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """The laptop's S3: another process, as AWS is."""
    project = tmp_path / "project"
    project.mkdir()
    yield local.start(project, port=0, deploy=False).endpoint_url
    local.stop(project)


def prepare(root: Path, base: Path, host: str) -> Path:
    """The folders of a host; all tasks are planned for the first one."""
    configs, data = root / "input" / "config", root / "input" / "data"
    for folder in (configs, data / "tasks", root / "model", root / "output", root / "checkpoints"):
        folder.mkdir(parents=True)
    shutil.copytree(base, data / "base")
    lines = []
    for number, request_id in enumerate(TASKS):
        photos = data / "photos" / "Berenice" / request_id
        photos.mkdir(parents=True)
        for photo in range(3):
            Image.new("RGB", (48, 48), (200, 40 * number, 80 * photo)).save(photos / f"{photo}.png")
        task = Task(
            request_id=request_id,
            user_id="Berenice",
            model_id="default",
            photos=f"Berenice/{request_id}/",
            config=LONG,
            instance=0,
            predicted_s=60.0 + number,
        )
        lines.append(task.model_dump_json() + "\n")
    (data / "tasks" / "tasks.jsonl").write_text("".join(lines))
    contents: dict[str, object] = {
        "hyperparameters": {},
        "inputdataconfig": {name: {} for name in ("base", "photos", "tasks")},
        "resourceconfig": {"current_host": host, "hosts": HOSTS},
    }
    for name, content in contents.items():
        (configs / f"{name}.json").write_text(json.dumps(content))
    return root


def start(root: Path, endpoint: str) -> subprocess.Popen[str]:
    environment = {
        **AWS,
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "SAGEMAKER_BASE_DIR": str(root),
        "TRAINING_JOB_NAME": "limner-batch-b1-1",
        "AWS_ENDPOINT_URL": endpoint,
        "LIMNER_CLAIMS": f"s3://bucket/{PREFIX}",
        "LIMNER_ROWS": "2",
        "LIMNER_QUALITY": "false",  # another test, and most of the time here
    }
    return subprocess.Popen(
        [sys.executable, "-m", "training"],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_all(roots: list[Path], endpoint: str) -> list[str]:
    """Runs all hosts at once; returns what each has said."""
    # The one that waits for the other's work comes first, so that there is some left.
    processes = [start(root, endpoint) for root in reversed(roots)][::-1]
    told = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, "")
        told.append(out)
    return told


def results(root: Path) -> set[str]:
    return {path.parent.name for path in (root / "checkpoints").glob("*/result.json")}


def claims(s3: Any) -> dict[str, int]:
    listed = s3.list_objects_v2(Bucket="bucket", Prefix=PREFIX).get("Contents", [])
    return {
        entry["Key"].removeprefix(PREFIX): int(
            s3.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read()
        )
        for entry in listed
    }


def test_who_is_done_early_takes_over(tmp_path: Path, endpoint: str) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    s3.create_bucket(Bucket="bucket")
    base = save_random_pipeline(tmp_path / "base")
    roots = [prepare(tmp_path / host, base, host) for host in HOSTS]

    told = run_all(roots, endpoint)
    done = [results(root) for root in roots]
    assert done[0] | done[1] == set(TASKS), "nothing is left"
    assert not done[0] & done[1], "nothing is done twice"
    assert done[0], "the first one begins with its own share"
    assert done[1], "the second one had nothing to do"
    assert claims(s3) == {name: host for host in (0, 1) for name in done[host]}
    assert set(re.findall(r"event=claimed request=(\S+)", told[1])) == done[1]
    assert "event=claimed" not in told[0]

    # The job starts again: each host finds what SageMaker's sync has brought of both, but for one
    # result that was lost with its host. Only the host that had claimed it does it again.
    lost = sorted(done[1])[0]
    shutil.rmtree(roots[1] / "checkpoints" / lost)
    for ours, theirs in (roots, roots[::-1]):
        for name in results(theirs) - results(ours):
            shutil.copytree(theirs / "checkpoints" / name, ours / "checkpoints" / name)
    before = claims(s3)
    told = run_all(roots, endpoint)
    assert f"event=task request={lost} status=trained" in told[1]
    assert [text.count("event=task ") for text in told] == [0, 1]
    assert f"event=left request={lost}" in told[0]
    assert claims(s3) == before
