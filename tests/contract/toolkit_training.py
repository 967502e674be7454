"""Our training under AWS's real ``sagemaker-training`` toolkit: ``make toolkit``.

It has an environment of its own and is no part of ``make test``: the toolkit has no wheel, so it
wants a C compiler with Python's headers, and brings 140 MB of scipy. What it does to our program is
pinned by ``test_training_toolkit.py``, and compared with the real thing here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path

from tests.contract.test_training_container import draw_photos, prepare_folders
from tests.contract.test_training_toolkit import arguments
from tests.support import toolkit
from tests.support.pipelines import save_random_pipeline

TRAIN = toolkit.REPOSITORY / "build" / "toolkit" / "bin" / "train"


def test_the_toolkits_train_makes_the_artifact(tmp_path: Path) -> None:
    assert TRAIN.exists(), "make toolkit"
    root = tmp_path / "ml"
    prepare_folders(root, save_random_pipeline(tmp_path / "base"), ("photos",))
    draw_photos(root / "input/data/photos")
    toolkit.describe_job(root, toolkit.submit_directory(tmp_path / "code"))
    done = subprocess.run(
        [TRAIN],
        env={
            "PATH": os.environ["PATH"],
            # torch and the rest of this environment, behind the toolkit's own.
            "PYTHONPATH": sysconfig.get_path("purelib"),
            "SAGEMAKER_BASE_DIR": str(root),
            **toolkit.ENVIRONMENT,
        },
        capture_output=True,
        text=True,
        timeout=150,
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    toolkit.check_artifact(root)
    assert (root / "output" / "success").exists()
    (command,) = re.findall(r"following command:\n\n(.+)\n", log)
    assert command.split(" ", 1)[1] == " ".join(["--", toolkit.ENTRY, *arguments()])
