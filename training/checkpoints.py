"""What a job that was interrupted goes on from.

Each host has two files below ``checkpoints/``, which SageMaker copies to S3 while the job runs and
back before it starts again (SageMaker developer guide, "Use checkpoints in Amazon SageMaker AI")::

    _state/host-0-a.safetensors   ─ serial 6 ┐ the next one is written over the older of the two;
    _state/host-0-b.safetensors   ─ serial 7 ┘ a torn copy of it leaves the other one

They hold what cannot be computed again: adapters, AdamW's moments, the generators' states, and who
is in which slot and who waits. Latents and captions follow from photos and seed. Nothing is ever
deleted here, for its copy in S3 would go too: what is over is written over by an empty plan.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from training.files import write_atomically
from training.job import Work
from training.progress import event_line, say
from training.settings import Settings

_KEY: Final = "limner.checkpoint"


class Member(BaseModel):
    """A work of a cohort.

    Attributes:
        request_id: The wish that it fulfils.
        config_sha256: Digest of its config.
        elapsed_s: Seconds since it began; 0 for who waits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    request_id: str
    config_sha256: str
    elapsed_s: float = 0.0

    @classmethod
    def of(cls, work: Work, elapsed_s: float = 0.0) -> Member:
        """The member that a work is."""
        return cls(
            request_id=work.request_id, config_sha256=work.config.digest(), elapsed_s=elapsed_s
        )


class Plan(BaseModel):
    """Who is in a cohort, and who will be.

    Attributes:
        base_sha256: Digest of the base.
        layout: Digest of where a bank has each matrix.
        rank: Rank of the bank.
        slots: How many learners there is room for.
        running: Who is in training, by slot.
        waiting: Who comes after them, in this order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_sha256: str
    layout: str
    rank: int
    slots: int
    running: tuple[Member, ...]
    waiting: tuple[Member, ...]

    @property
    def names(self) -> list[str]:
        """The requests, those in training first."""
        return [member.request_id for member in (*self.running, *self.waiting)]

    def is_of(self, base_sha256: str, works: Mapping[str, Work]) -> bool:
        """Whether it is about works of these, as they are now, on this base."""
        return self.base_sha256 == base_sha256 and all(
            member.request_id in works
            and member.config_sha256 == works[member.request_id].config.digest()
            for member in (*self.running, *self.waiting)
        )


class _Header(BaseModel):
    """The one entry of the metadata.

    Attributes:
        form: Version of this form.
        serial: Grows with each file.
        plan: The cohort; None if all is done.
        sha256: Hash of all that the file says, with this entry left empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal[1] = 1
    serial: int = Field(ge=0)
    plan: Plan | None = None
    sha256: str = ""

    def hashed(self, tensors: Mapping[str, Tensor]) -> str:
        """The hash that belongs there."""
        digest = hashlib.sha256(self.model_copy(update={"sha256": ""}).model_dump_json().encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A cohort between two steps.

    Attributes:
        plan: Who was where.
        tensors: What ``Cohort.state`` said.
    """

    plan: Plan
    tensors: Mapping[str, Tensor]


class Checkpoints:
    """The two files of one host.

    Args:
        folder: Where they lie.
        host: Position of this host; hosts share a prefix in S3, and each finds all files there.
        parts_dir: Where unfinished files lie.
        every_s: Seconds between two of them.
    """

    def __init__(self, folder: Path, *, host: int, parts_dir: Path, every_s: float) -> None:
        self._paths = [folder / f"host-{host}-{side}.safetensors" for side in "ab"]
        self._parts_dir = parts_dir
        self._every_s = every_s
        self._saved = time.monotonic()
        self._serial = 0
        self._next = 0

    @classmethod
    def of(cls, settings: Settings, host: int = 0) -> Checkpoints:
        """Those of a host of this job."""
        return cls(
            settings.state_dir,
            host=host,
            parts_dir=settings.parts_dir,
            every_s=settings.checkpoint_every_s,
        )

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._saved >= self._every_s

    def find(self, base_sha256: str, works: Mapping[str, Work]) -> Checkpoint | None:
        """The latest one of these works on this base; others are passed over, and said so.

        Args:
            base_sha256: Digest of the base.
            works: All works of this host, by request.
        """
        best: tuple[int, Checkpoint] | None = None
        for index, path in enumerate(self._paths):
            try:
                header, tensors = _read(path)
            except FileNotFoundError:
                continue
            except (SafetensorError, ValueError, OSError) as error:
                reason = "form" if isinstance(error, ValidationError) else "damaged"
                say(event_line("passed_over", checkpoint=path.stem, reason=reason))
                continue
            plan, self._serial = header.plan, max(self._serial, header.serial)
            if plan is None:
                continue
            if not plan.is_of(base_sha256, works):
                say(event_line("passed_over", checkpoint=path.stem, reason="other"))
            elif best is None or header.serial > best[0]:
                best, self._next = (header.serial, Checkpoint(plan, tensors)), 1 - index
        return best[1] if best else None

    def save(self, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
        """Writes the next one over the older of the two.

        A disk that is too full for it ends nothing: what is in training may still have room for
        its artifacts, and the last checkpoint is whole.
        """
        started = time.perf_counter()
        try:
            self._write(self._paths[self._next], plan, tensors)
        except OSError as error:
            say(event_line("unsaved", reason=type(error).__name__))
        else:
            self._next = 1 - self._next
            seconds = time.perf_counter() - started
            say(event_line("saved", learners=len(plan.running), seconds=seconds))
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Writes over both files: nobody's adapter stays here longer than it is needed."""
        for path in self._paths:
            if path.exists():
                self._write(path, None, {})

    def _write(self, path: Path, plan: Plan | None, tensors: Mapping[str, Tensor]) -> None:
        self._serial += 1
        header = _Header(serial=self._serial, plan=plan)
        header = header.model_copy(update={"sha256": header.hashed(tensors)})
        data = save(dict(tensors), metadata={_KEY: header.model_dump_json()})
        write_atomically(path, data, parts=self._parts_dir)


def _read(path: Path) -> tuple[_Header, Mapping[str, Tensor]]:
    """Reads a file.

    Raises:
        FileNotFoundError: If there is none.
        ValidationError: If it is of another form.
        SafetensorError, ValueError, OSError: If it is damaged.
    """
    with safe_open(path, framework="pt") as file:
        header = _Header.model_validate_json((file.metadata() or {}).get(_KEY, ""))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no map
    if header.hashed(tensors) != header.sha256:
        raise ValueError("the hash is another one")
    return header, tensors
