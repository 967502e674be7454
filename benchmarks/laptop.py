"""The README's figures of the laptop: start-up, memory, CLI, fine-tune, generation.

``make bench`` runs it. Absolute seconds depend on the machine, so the machine, its load and the
versions are printed with them; nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from limner import local
from limner.cli.target import connect_laptop
from limner.local.control import Control

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "examples" / "photos" / "monster"
ROUNDS = 7


def machine() -> dict[str, object]:
    """Where the figures come from."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": version("torch"),
        "diffusers": version("diffusers"),
        "ministack": version("ministack"),
    }


def median_ms(command: list[str]) -> float:
    """Median wall milliseconds of a command; a first, cold run is dropped."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return round(1000 * statistics.median(times[1:]), 1)


def resident_mb(pid: int) -> float:
    """Resident memory of one process in MB (10^6 bytes)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return round(int(found[1]) * 1024 / 1e6, 1) if found else 0.0


def setup_size_mb() -> float:
    """Size of the virtual environment in MB."""
    files = (path for path in Path(sys.prefix).rglob("*") if path.is_file())
    return round(sum(path.lstat().st_size for path in files) / 1e6)


def laptop_figures() -> dict[str, object]:
    """Start-up, memory, one fine-tune and generations, through the front door."""
    project = Path(tempfile.mkdtemp(prefix="limner-bench-"))
    figures: dict[str, object] = {}
    try:
        start = time.perf_counter()
        bare = local.start(project, deploy=False)
        figures["laptop_start_s"] = round(time.perf_counter() - start, 2)
        figures["laptop_resident_mb"] = resident_mb(bare.pid)
        local.stop(project)

        start = time.perf_counter()
        laptop = local.start(project)
        figures["laptop_start_and_deploy_s"] = round(time.perf_counter() - start, 2)
        limner = connect_laptop(laptop)

        start = time.perf_counter()
        request = limner.onboard("bench", sorted(PHOTOS.glob("*.png")))
        limner.wait(request.request_id, timeout_s=600, poll_s=0.2)
        figures["onboarding_s"] = round(time.perf_counter() - start, 1)
        (job,) = Control(laptop.endpoint_url).jobs()
        described = limner.clients.sagemaker.describe_training_job(TrainingJobName=job.name)
        figures["training_job_s"] = described["TrainingTimeInSeconds"]

        times = []
        for seed in range(ROUNDS + 1):
            start = time.perf_counter()
            limner.generate("bench", "a photo of {token}", seed=seed)
            times.append(time.perf_counter() - start)
        figures["generation_s"] = round(statistics.median(times[1:]), 2)
        start = time.perf_counter()
        limner.generate("bench", "a photo of {token}", images=4)
        figures["four_images_s"] = round(time.perf_counter() - start, 2)
    finally:
        local.stop(project)
        shutil.rmtree(project, ignore_errors=True)
    return figures


def main() -> None:
    """Prints all figures as one JSON document."""
    limner = str(Path(sys.executable).parent / "limner")
    figures = {
        "machine": machine(),
        "limner_help_ms": median_ms([limner, "--help"]),
        "bare_python_ms": median_ms([sys.executable, "-c", "pass"]),
        "environment_mb": setup_size_mb(),
        **laptop_figures(),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
