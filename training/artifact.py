"""Writes what the endpoint loads, member by member, the manifest last."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from limner.contracts import artifact as form
from limner.contracts.training import TrainingConfig
from training.base import Base
from training.files import write_atomically
from training.settings import Settings


def layout_of(tensors: Mapping[str, Tensor]) -> form.PackedLayout:
    """The packed layout of an adapter."""
    return form.PackedLayout.of((name, tuple(tensor.shape)) for name, tensor in tensors.items())


def pack(tensors: Mapping[str, Tensor]) -> Tensor:
    """All matrices of an adapter as one flat tensor, in the order of its layout: [size]."""
    return torch.cat([tensors[item.name].reshape(-1) for item in layout_of(tensors)])


def write_artifact(
    settings: Settings,
    config: TrainingConfig,
    base: Base,
    tensors: Mapping[str, Tensor],
    metrics: Mapping[str, float],
) -> form.Manifest:
    """Writes the members of the artifact into ``model/``.

    The manifest comes last: a folder without one is no artifact, whatever happened before.

    Args:
        settings: Where to, and for which request.
        config: What the adapter was trained with.
        base: What the adapter was trained on.
        tensors: The adapter by diffusers' names.
        metrics: Figures of the training, for the manifest.

    Returns:
        The manifest as written.
    """
    layout = layout_of(tensors)
    adapter = save(dict(tensors), metadata={"format": "pt"})
    packed = save(
        {form.PACKED_TENSOR: pack(tensors)},
        metadata={"format": "pt", form.PACKED_LAYOUT_KEY: layout.digest()},
    )
    manifest = form.Manifest(
        request_id=settings.request_id,
        model_id=settings.model_id,
        base_id=base.card.base_id,
        base_sha256=base.digest,
        rank=config.rank,
        token=config.token,
        subject_phrase=config.subject_phrase,
        target_modules=target_modules(tensors),
        layout_sha256=layout.digest(),
        config_sha256=config.digest(),
        adapter_sha256=hashlib.sha256(adapter).hexdigest(),
        packed_sha256=hashlib.sha256(packed).hexdigest(),
        metrics=dict(metrics),
    )
    members = {
        **form.shell_files(),
        form.ADAPTER: adapter,
        form.PACKED: packed,
        form.MANIFEST: (manifest.model_dump_json(indent=2) + "\n").encode(),
    }
    for name in form.MEMBERS:
        write_atomically(settings.model_dir / name, members[name])
    return manifest


def target_modules(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the adapted layers, sorted, with the prefix ``unet.``."""
    return tuple(sorted({name.rsplit(".lora_", 1)[0] for name in tensors}))


def remove_artifact(model_dir: Path) -> None:
    """Removes our members from ``model/``: SageMaker uploads the folder of a failed job too."""
    for name in reversed(form.MEMBERS):
        (model_dir / name).unlink(missing_ok=True)
