"""Reads an artifact's folder, trusting nothing in it.

The folder was unpacked by the platform from an archive in S3. Whoever could write there must not
be able to make this process run code, read other files, exhaust memory, or draw with weights that
belong to another base.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inference.engine.base import ResidentBase
from inference.engine.lora import derive_layout, widen
from limner.contracts import artifact
from limner.contracts.artifact import Manifest, PackedLayout
from limner.contracts.errors import LimnerError
from limner.contracts.training import explain

_FOLDERS: Final = {
    str(parent) for name in artifact.MEMBERS for parent in PurePosixPath(name).parents
} - {"."}
_KEYS: Final = itertools.count()
_TYPES: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_WIDEST: Final = max(dtype.itemsize for dtype in _TYPES.values())
_MAX_HEADER_BYTES: Final = 1 << 16


class _Slot(BaseModel):
    """What a packed file's header says of its one tensor, which fills the rest of the file."""

    model_config = ConfigDict(extra="forbid")

    dtype: Literal["F16", "BF16", "F32"]
    shape: tuple[int]
    data_offsets: tuple[Literal[0], int]


class _Header(BaseModel):
    """The header of a safetensors file, of the one form that training writes.

    It is JSON, behind its size in 8 bytes (https://github.com/huggingface/safetensors, "Format").
    """

    model_config = ConfigDict(extra="forbid")

    metadata: dict[str, str] = Field(alias="__metadata__")
    slot: _Slot = Field(alias=artifact.PACKED_TENSOR)


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """The layout of a slot, and its digest, which takes long to make."""

    layout: PackedLayout
    sha256: str


@dataclass(frozen=True)
class Checked:
    """An artifact whose form, base and layout are right; its weights were not looked at yet.

    Attributes:
        manifest: What it says of itself.
        layout: Of its packed file.
        slot_layout: Of a slot for it: the same layers, its rank padded.
        packed: Its packed file.
        size_bytes: Bytes of a slot for it.
    """

    manifest: Manifest
    layout: PackedLayout
    slot_layout: SlotLayout
    packed: Path
    size_bytes: int


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory, in the form of a slot.

    Attributes:
        key: Never used twice: an adapter that is loaded again has another one.
        manifest: What the artifact says of itself, checked.
        layout: Places of its matrices in ``row``.
        layout_sha256: The layout's digest.
        row: All weights, ``[layout.size]``, on the host, in the base's type.
    """

    key: int
    manifest: Manifest
    layout: PackedLayout
    layout_sha256: str
    row: torch.Tensor

    @property
    def size_bytes(self) -> int:
        """Bytes of ``row``."""
        return self.row.numel() * self.row.element_size()


def check_artifact(folder: Path, base: ResidentBase, max_rank: int) -> Checked:
    """Checks an artifact without looking at its weights.

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
    own = _layout(base, manifest.target_modules, manifest.rank)
    if own.sha256 != manifest.layout_sha256:
        raise _invalid("its layout is not the one of its layers and rank")
    wider = _layout(base, manifest.target_modules, padded_rank(manifest.rank))
    return Checked(
        manifest=manifest,
        layout=own.layout,
        slot_layout=wider,
        packed=folder / artifact.PACKED,
        size_bytes=wider.layout.size * base.dtype.itemsize,
    )


def read_adapter(checked: Checked, base: ResidentBase) -> Adapter:
    """Copies the packed weights of a checked artifact to the host's memory, if their hash is right.

    The standard adapter beside them is for other tools. It is never read here, so its hash would
    tell nothing of what is drawn, and would double the time of a load.

    Raises:
        LimnerError: ``ARTIFACT_INVALID``, if they are not what the manifest says, or not finite.
    """
    stored = _read_packed(checked)
    wider = checked.slot_layout
    # Pinned memory: the copy to a GPU then runs beside its work.
    row = torch.empty(wider.layout.size, dtype=base.dtype, pin_memory=base.device.type == "cuda")
    widen(stored, checked.layout, row, wider.layout)
    # Checked in the base's own type, in which a large fp32 number may be infinite. Whatever is not
    # a number becomes the smallest and the largest one; ten times faster than to ask each.
    if not all(isfinite(float(bound)) for bound in row.aminmax()):
        raise _invalid(f"{checked.packed.name} holds numbers that are not finite")
    return Adapter(next(_KEYS), checked.manifest, wider.layout, wider.sha256, row)


def padded_rank(rank: int) -> int:
    """The rank of a slot for an adapter of this rank: the next power of two.

    So that users of nearly equal ranks share a bank, at twice the memory at most.
    """
    return 1 << (rank - 1).bit_length()


# One config is shared by nearly all users of an endpoint, so its layout is derived once.
@lru_cache(maxsize=64)
def _layout(base: ResidentBase, target_modules: tuple[str, ...], rank: int) -> SlotLayout:
    layout = derive_layout(base.layers, target_modules, rank)
    return SlotLayout(layout, layout.digest())


def _invalid(reason: str) -> LimnerError:
    return LimnerError("ARTIFACT_INVALID", f"The artifact cannot be served: {reason}.")


def _check_members(folder: Path) -> None:
    """All members are there as plain files of a sane size, and nothing else is."""
    found = set()
    for name, entry in _walk(str(folder), ""):
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


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Entries with their paths in the artifact; enters only the folders that it may have."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            yield name, entry
            if name in _FOLDERS and entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{name}/")


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(_read(path, artifact.MAX_MANIFEST_BYTES))
    except ValidationError as error:
        raise _invalid(f"manifest: {explain(error)[:500]}") from error


def _read_packed(checked: Checked) -> torch.Tensor:
    """The packed weights as they are stored, ``[layout.size]``.

    The file is read once: what has the right hash is what is used, whatever becomes of the file
    meanwhile. safetensors would map it for a second time, or copy it, which costs a third of all.
    """
    path = checked.packed
    content = _read(path, checked.layout.size * _WIDEST + _MAX_HEADER_BYTES)
    if hashlib.sha256(content).hexdigest() != checked.manifest.packed_sha256:
        raise _invalid(f"{path.name} does not have the hash that the manifest gives")
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        header = _Header.model_validate_json(content[8:start])
    except ValidationError as error:
        raise _invalid(f"{path.name}: {explain(error)[:500]}") from error
    if header.metadata.get(artifact.PACKED_LAYOUT_KEY) != checked.manifest.layout_sha256:
        raise _invalid(f"{path.name} has another layout than the manifest says")
    dtype = _TYPES[header.slot.dtype]
    size_bytes = checked.layout.size * dtype.itemsize
    told = (header.slot.shape, header.slot.data_offsets)
    if told != ((checked.layout.size,), (0, size_bytes)) or len(content) != start + size_bytes:
        raise _invalid(f"{path.name} has another size than its layout")
    if start % dtype.itemsize:
        raise _invalid(f"the weights of {path.name} do not lie at a multiple of their size")
    return torch.frombuffer(content, dtype=dtype, offset=start)


def _read(path: Path, most: int) -> bytearray:
    with path.open("rb", buffering=0) as file:
        content = bytearray(min(os.fstat(file.fileno()).st_size, most + 1))
        rest = memoryview(content)
        while rest and (count := file.readinto(rest)):
            rest = rest[count:]
    if rest or len(content) > most:
        raise _invalid(f"{path.name} was cut, or is larger than {most} bytes")
    return content
