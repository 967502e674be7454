"""Unpacked artifacts that nobody should serve: a sound one, and what is done to it."""

import hashlib
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from limner.contracts import artifact
from limner.contracts.training import TrainingConfig
from tests.support.artifacts import write_members
from tests.support.containers import MAX_RANK


def _rewrite_manifest(folder: Path, **changes: object) -> None:
    path = folder / artifact.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _rewrite_packed(folder: Path, content: bytes) -> None:
    """Other packed bytes, with the hash that belongs to them."""
    (folder / artifact.PACKED).write_bytes(content)
    _rewrite_manifest(folder, packed_sha256=hashlib.sha256(content).hexdigest())


def _save_packed(folder: Path, tensors: dict[str, np.ndarray], layout: str | None = None) -> None:
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    metadata = {artifact.PACKED_LAYOUT_KEY: layout or manifest["layout_sha256"]}
    save_file(tensors, folder / artifact.PACKED, metadata=metadata)
    _rewrite_packed(folder, (folder / artifact.PACKED).read_bytes())


def _with_weight(value: float) -> Callable[[Path, Path], None]:
    def damage(folder: Path, base: Path) -> None:
        tensors = load_file(folder / artifact.ADAPTER)
        next(iter(tensors.values())).flat[3] = value
        manifest = json.loads((folder / artifact.MANIFEST).read_text())
        config = TrainingConfig(rank=manifest["rank"])
        write_members(folder, base, tensors, config, tuple(manifest["target_modules"]))

    return damage


def _cut(folder: Path, _: Path) -> None:
    _rewrite_packed(folder, (folder / artifact.PACKED).read_bytes()[:-1000])


def _flip_a_bit(name: str) -> Callable[[Path, Path], None]:
    def damage(folder: Path, _: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-5] ^= 1
        (folder / name).write_bytes(content)

    return damage


def _link(folder: Path, _: Path) -> None:
    target = folder.parent / "elsewhere"
    (folder / artifact.ADAPTER).rename(target)
    (folder / artifact.ADAPTER).symlink_to(target)


def _link_folder(folder: Path, _: Path) -> None:
    (folder / "1").rename(folder.parent / "one")
    (folder / "1").symlink_to(folder.parent / "one")


def _packed_of(dtype: type, size: int = 0) -> Callable[[Path, Path], None]:
    def damage(folder: Path, _: Path) -> None:
        flat = load_file(folder / artifact.PACKED)[artifact.PACKED_TENSOR]
        _save_packed(folder, {artifact.PACKED_TENSOR: flat.astype(dtype)[size:]})

    return damage


def _other_tensor(folder: Path, _: Path) -> None:
    _save_packed(folder, load_file(folder / artifact.ADAPTER))


def _with_header(edit: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    """Another header before the same weights."""

    def damage(folder: Path, _: Path) -> None:
        content = (folder / artifact.PACKED).read_bytes()
        stop = 8 + int.from_bytes(content[:8], "little")
        header = edit(content[8:stop])
        _rewrite_packed(folder, len(header).to_bytes(8, "little") + header + content[stop:])

    return damage


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "missing adapter": lambda folder, _: (folder / artifact.ADAPTER).unlink(),
    "missing shell": lambda folder, _: (folder / artifact.TRITON_SHELL).unlink(),
    "missing manifest": lambda folder, _: (folder / artifact.MANIFEST).unlink(),
    "extra file": lambda folder, _: (folder / "extra.bin").write_bytes(b"x"),
    "extra file in a folder": lambda folder, _: (folder / "1" / "x.py").write_text(""),
    "extra folder": lambda folder, _: (folder / "2").mkdir(),
    "link": _link,
    "linked folder": _link_folder,
    "manifest is no JSON": lambda folder, _: (folder / artifact.MANIFEST).write_text("nope"),
    "manifest is huge": lambda folder, _: _rewrite_manifest(folder, request_id="x" * 300_000),
    "manifest of another schema": lambda folder, _: _rewrite_manifest(folder, schema_version=2),
    "manifest with more": lambda folder, _: _rewrite_manifest(folder, more=1),
    "packed has another hash": _flip_a_bit(artifact.PACKED),
    "packed is cut": _cut,
    "packed is empty": lambda folder, _: _rewrite_packed(folder, b""),
    "packed is a pickle": lambda folder, _: _rewrite_packed(folder, pickle.dumps({"a": 1})),
    "packed has no JSON": _with_header(lambda header: b"x" * len(header)),
    "packed has another JSON": _with_header(lambda _: b"[]      "),
    "packed lies askew": _with_header(lambda header: header + b" "),
    "packed has a huge header": _with_header(lambda header: header + b" " * 8_000_000),
    "packed says that it is smaller": _with_header(
        lambda header: re.sub(rb"\[0, *(\d+)\]", lambda m: m[0].replace(b"[0", b"[8"), header)
    ),
    "packed goes on": lambda folder, _: _rewrite_packed(
        folder, (folder / artifact.PACKED).read_bytes() + bytes(4)
    ),
    "packed holds integers": _packed_of(np.int32),
    "packed is too short": _packed_of(np.float32, size=1),
    "packed has other tensors": _other_tensor,
    "packed has another layout": lambda folder, _: _save_packed(
        folder, load_file(folder / artifact.PACKED), layout="0" * 64
    ),
    "not a number": _with_weight(float("nan")),
    "infinite": _with_weight(float("inf")),
    "rank of another layout": lambda folder, _: _rewrite_manifest(folder, rank=2),
    "rank over the limit": lambda folder, _: _rewrite_manifest(folder, rank=MAX_RANK + 1),
    "absurd rank": lambda folder, _: _rewrite_manifest(folder, rank=10**12),
    "unknown layer": lambda folder, _: _rewrite_manifest(folder, target_modules=["to_q", "to_z"]),
    "no layer": lambda folder, _: _rewrite_manifest(folder, target_modules=[]),
}
