"""Reads an artifact's folder, trusting nothing in it.

The folder was unpacked by the platform from an archive in S3. Whoever could write there must not
be able to make this process run code, read other files, exhaust memory, or draw with weights that
belong to another base.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from inference.engine.base import ResidentBase
from inference.engine.lora import Factors, derive_layout, unpack
from limner.contracts import artifact
from limner.contracts.artifact import Manifest, PackedLayout
from limner.contracts.errors import LimnerError
from limner.contracts.training import explain

_FOLDERS: Final = {
    str(parent) for name in artifact.MEMBERS for parent in PurePosixPath(name).parents
} - {"."}


@dataclass(frozen=True)
class Adapter:
    """An adapter in a slot, ready to draw.

    Attributes:
        manifest: What the artifact says of itself, checked.
        flat: All weights, ``[layout.size]``, on the base's device; the slot.
        factors: Views of ``flat``, by layer.
    """

    manifest: Manifest
    flat: torch.Tensor
    factors: dict[str, Factors]


def read_adapter(folder: Path, base: ResidentBase, max_rank: int) -> Adapter:
    """Checks an artifact and copies its packed weights to the base's device.

    Args:
        folder: The unpacked artifact; the caller has checked where it lies.
        base: The base that it must have been trained on.
        max_rank: Highest rank that is served.

    Raises:
        LimnerError: ``ARTIFACT_INVALID`` or ``ARTIFACT_WRONG_BASE``, with the reason.
    """
    _check_members(folder)
    manifest = _read_manifest(folder / artifact.MANIFEST)
    if (manifest.base_id, manifest.base_sha256) != (base.base_id, base.sha256):
        raise LimnerError(
            "ARTIFACT_WRONG_BASE",
            f"The adapter was trained on {manifest.base_id[:64]} "
            f"({manifest.base_sha256[:12]}), this endpoint serves {base.base_id} "
            f"({base.sha256[:12]}).",
        )
    if manifest.rank > max_rank:
        raise _invalid(f"its rank is {manifest.rank}, the limit is {max_rank}")
    layout = derive_layout(base.layers, manifest.target_modules, manifest.rank)
    if layout.digest() != manifest.layout_sha256:
        raise _invalid("its layout is not the one of its layers and rank")
    _check_hash(folder / artifact.ADAPTER, manifest.adapter_sha256)
    _check_hash(folder / artifact.PACKED, manifest.packed_sha256)
    flat = _read_packed(folder / artifact.PACKED, layout, base)
    return Adapter(manifest, flat, unpack(flat, layout))


def _invalid(reason: str) -> LimnerError:
    return LimnerError("ARTIFACT_INVALID", f"The artifact cannot be served: {reason}.")


def _check_members(folder: Path) -> None:
    """All members are there as plain files of a sane size, and nothing else is."""
    found = set()
    for name, entry in _walk(folder, ""):
        if entry.is_symlink():
            raise _invalid(f"{name[:80]!r} is a link")
        if name in artifact.MEMBERS and entry.is_file(follow_symlinks=False):
            if entry.stat(follow_symlinks=False).st_size > artifact.MAX_MEMBER_BYTES:
                raise _invalid(f"{name} is larger than {artifact.MAX_MEMBER_BYTES} bytes")
            found.add(name)
        elif not (name in _FOLDERS and entry.is_dir(follow_symlinks=False)):
            raise _invalid(f"{name[:80]!r} does not belong there")
    if missing := [name for name in artifact.MEMBERS if name not in found]:
        raise _invalid(f"{missing[0]} is missing")


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Entries with their paths in the artifact; enters only the folders that it may have."""
    with os.scandir(folder / prefix) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            yield name, entry
            if name in _FOLDERS and entry.is_dir(follow_symlinks=False):
                yield from _walk(folder, f"{name}/")


def _read_manifest(path: Path) -> Manifest:
    if path.stat().st_size > artifact.MAX_MANIFEST_BYTES:
        raise _invalid(f"its manifest is larger than {artifact.MAX_MANIFEST_BYTES} bytes")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise _invalid(f"manifest: {explain(error)[:500]}") from error


def _check_hash(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise _invalid(f"{path.name} does not have the hash that the manifest gives")


def _read_packed(path: Path, layout: PackedLayout, base: ResidentBase) -> torch.Tensor:
    """The packed weights, ``[layout.size]``, on the base's device and in its type."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if file.keys() != [artifact.PACKED_TENSOR]:
                raise _invalid(f"{path.name} must hold the one tensor {artifact.PACKED_TENSOR!r}")
            if metadata.get(artifact.PACKED_LAYOUT_KEY) != layout.digest():
                raise _invalid(f"{path.name} has another layout than the manifest says")
            if file.get_slice(artifact.PACKED_TENSOR).get_shape() != [layout.size]:
                raise _invalid(f"{path.name} has another size than its layout")
            stored = file.get_tensor(artifact.PACKED_TENSOR)
    except SafetensorError as error:
        raise _invalid(f"{path.name} is no sound safetensors file") from error
    if not stored.dtype.is_floating_point:
        raise _invalid(f"{path.name} does not hold floating-point numbers")
    # A copy in any case: the stored tensor lies on a mapping of the file, which may go away.
    flat: torch.Tensor = stored.to(base.device, base.dtype, copy=True)
    # Checked in the base's own type, in which a large fp32 number may be infinite.
    if not bool(flat.isfinite().all()):
        raise _invalid(f"{path.name} holds numbers that are not finite")
    return flat
