"""Our training as AWS's ``sagemaker-training`` toolkit starts it.

The toolkit copies the source folder to ``code/``, starts the entry script there with each
hyperparameter as an argument, and puts ``code/`` on PYTHONPATH. ``make toolkit`` shows the same
with the toolkit itself, and compares the command.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.contract.test_training_container import draw_photos, prepare_folders
from tests.support import toolkit
from tests.support.pipelines import save_random_pipeline


def arguments() -> list[str]:
    """The hyperparameters as arguments: by name, texts without their quotes."""
    ours = toolkit.CONFIG.model_dump(mode="json")
    return [word for name in sorted(ours) for word in (f"--{name}", str(ours[name]))]


def test_the_entry_script_makes_the_artifact(tmp_path: Path) -> None:
    root = tmp_path / "ml"
    prepare_folders(root, save_random_pipeline(tmp_path / "base"), ("photos",))
    draw_photos(root / "input/data/photos")
    code = toolkit.submit_directory(root / "code")
    toolkit.describe_job(root, code)
    done = subprocess.run(
        [sys.executable, "--", toolkit.ENTRY, *arguments()],
        cwd=code,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(code),
            "SAGEMAKER_BASE_DIR": str(root),
            **toolkit.ENVIRONMENT,
        },
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    toolkit.check_artifact(root)
