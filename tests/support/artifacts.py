"""Artifacts for tests: random adapters in the exact form that training publishes.

Needs neither torch nor diffusers: the shapes of a base's layers stand in the header of its UNet's
safetensors file, so that a test of the laptop or of a Lambda can have a sound artifact in
milliseconds.
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import save_file

from limner.contracts import artifact
from limner.contracts.artifact import Manifest, PackedLayout
from limner.contracts.base import base_digest, read_card
from limner.contracts.training import TrainingConfig

_ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
_TRANSFORMER: Final = (*_ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_ALL: Final = (*_TRANSFORMER, "conv1", "conv2", "time_emb_proj", "conv_shortcut", "conv")
_SUFFIXES: Final = {"attention": _ATTENTION, "transformer": _TRANSFORMER, "all": _ALL}


def write_artifact(
    folder: Path,
    base: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    target: str = "attention",
    strength: float = 0.5,
) -> Manifest:
    """Writes an unpacked artifact with a random adapter that visibly changes the base's images.

    Args:
        folder: Where the members go; made if it does not exist.
        base: Folder of the base that the adapter is for.
        seed: Seed of the weights; other seeds give other images.
        rank: Rank of the LoRA matrices.
        target: ``attention``, ``transformer`` or ``all``, as in ``TrainingConfig.target``.
        strength: Standard deviation of the ``lora_B`` weights; 0 changes no image.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    layers = sorted(_layers(base, _SUFFIXES[target]))
    for name, (out, into, *kernel) in layers:
        fan_in = into * int(np.prod(kernel, dtype=int))
        a = rng.normal(0, fan_in**-0.5, (rank, into, *kernel))
        b = rng.normal(0, strength * rank**-0.5, (out, rank, *(1 for _ in kernel)))
        tensors[f"unet.{name}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"unet.{name}.lora_B.weight"] = b.astype(np.float32)
    config = TrainingConfig.model_validate({"seed": seed, "rank": rank, "target": target})
    return write_members(folder, base, tensors, config, tuple(f"unet.{name}" for name, _ in layers))


def write_members(
    folder: Path,
    base: Path,
    tensors: dict[str, np.ndarray],
    config: TrainingConfig,
    target_modules: tuple[str, ...],
) -> Manifest:
    """Writes an unpacked artifact with these weights, whatever they are, and matching hashes.

    Args:
        folder: Where the members go; made if it does not exist.
        base: Folder of the base that the manifest names.
        tensors: LoRA matrices by their names in diffusers' state dict.
        config: The training config that the manifest speaks of.
        target_modules: What the manifest gives as adapted layers.
    """
    (folder / artifact.TRITON_SHELL).parent.mkdir(parents=True, exist_ok=True)
    for name, content in artifact.shell_files().items():
        (folder / name).write_bytes(content)
    layout = PackedLayout.of((name, value.shape) for name, value in tensors.items())
    flat = np.concatenate([tensors[item.name].ravel() for item in layout])
    save_file(tensors, folder / artifact.ADAPTER, metadata={"format": "pt"})
    save_file(
        {artifact.PACKED_TENSOR: flat},
        folder / artifact.PACKED,
        metadata={artifact.PACKED_LAYOUT_KEY: layout.digest()},
    )
    manifest = Manifest(
        request_id=f"test-{config.seed}",
        base_id=read_card(base).base_id,
        base_sha256=base_digest(base),
        rank=config.rank,
        token=config.token,
        subject_phrase=config.subject_phrase,
        target_modules=tuple(sorted(target_modules)),
        layout_sha256=layout.digest(),
        config_sha256=config.digest(),
        adapter_sha256=_sha256(folder / artifact.ADAPTER),
        packed_sha256=_sha256(folder / artifact.PACKED),
        metrics={"loss": 0.1, "steps": 1.0},
    )
    (folder / artifact.MANIFEST).write_text(manifest.model_dump_json(indent=2))
    return manifest


def pack(folder: Path, archive: Path) -> None:
    """Packs an unpacked artifact into a .tar.gz; equal members give equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in artifact.MEMBERS:
            content = (folder / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(gzip.compress(buffer.getvalue(), compresslevel=1, mtime=0))


def _layers(base: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and weight shapes of the UNet's linear and convolution layers with these endings."""
    with (base / "unet" / "diffusion_pytorch_model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for key, entry in header.items():
        name, _, kind = key.rpartition(".")
        matches = any(name.endswith(f".{suffix}") for suffix in suffixes)
        if kind == "weight" and matches and len(entry["shape"]) in {2, 4}:
            yield name, tuple(entry["shape"])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
