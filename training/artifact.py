"""What the endpoint loads: its members from an adapter, and how they are written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from limner.contracts import artifact as form
from training.base import Base
from training.files import write_atomically
from training.job import Work


def layout_of(tensors: Mapping[str, Tensor]) -> form.PackedLayout:
    """The packed layout of an adapter."""
    return form.PackedLayout.of((name, tuple(tensor.shape)) for name, tensor in tensors.items())


def pack(tensors: Mapping[str, Tensor]) -> Tensor:
    """All matrices of an adapter as one flat tensor, in the order of its layout: [size]."""
    return torch.cat([tensors[item.name].reshape(-1) for item in layout_of(tensors)])


def members_of(
    work: Work, base: Base, tensors: Mapping[str, Tensor], metrics: Mapping[str, float]
) -> dict[str, bytes]:
    """The content of each member of the artifact.

    Args:
        work: What the adapter was trained with, and for which request.
        base: What the adapter was trained on.
        tensors: The adapter by diffusers' names.
        metrics: Figures of the training, for the manifest.
    """
    layout = layout_of(tensors)
    adapter = save(dict(tensors), metadata={"format": "pt"})
    packed = save(
        {form.PACKED_TENSOR: pack(tensors)},
        # One entry and no second one: safetensors writes several in a random order, and equal
        # adapters shall give equal bytes.
        metadata={form.PACKED_LAYOUT_KEY: layout.digest()},
    )
    manifest = form.Manifest(
        request_id=work.request_id,
        model_id=work.model_id,
        base_id=base.card.base_id,
        base_sha256=base.digest,
        rank=work.config.rank,
        token=work.config.token,
        subject_phrase=work.config.subject_phrase,
        target_modules=target_modules(tensors),
        layout_sha256=layout.digest(),
        config_sha256=work.config.digest(),
        adapter_sha256=hashlib.sha256(adapter).hexdigest(),
        packed_sha256=hashlib.sha256(packed).hexdigest(),
        metrics=dict(metrics),
    )
    return {
        **form.shell_files(),
        form.ADAPTER: adapter,
        form.PACKED: packed,
        form.MANIFEST: (manifest.model_dump_json(indent=2) + "\n").encode(),
    }


def write_members(model_dir: Path, members: Mapping[str, bytes]) -> None:
    """Writes the members of the artifact into ``model/``, all of them or none.

    The manifest comes last: a folder without one is no artifact, whatever happened before.
    """
    with ExitStack() as undo:
        undo.callback(_remove_members, model_dir)
        for name in form.MEMBERS:
            write_atomically(model_dir / name, members[name])
        undo.pop_all()  # whole: it stays


def target_modules(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the adapted layers, sorted, with the prefix ``unet.``."""
    return tuple(sorted({name.rsplit(".lora_", 1)[0] for name in tensors}))


def _remove_members(model_dir: Path) -> None:
    """Removes our members from ``model/``: SageMaker uploads the folder of a failed job too."""
    for name in reversed(form.MEMBERS):
        (model_dir / name).unlink(missing_ok=True)
