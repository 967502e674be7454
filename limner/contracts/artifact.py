"""The artifact that an endpoint loads: names, manifest, and the layout of the packed adapter.

An artifact is a .tar.gz with exactly these members::

    config.pbtxt                  Triton's model configuration (thin, the same for everyone)
    1/model.py                    Triton's thin shell (ours, byte-identical in all artifacts)
    adapter.safetensors           the LoRA weights, loadable by diffusers' ``load_lora_weights``
    adapter.packed.safetensors    the same weights as one flat tensor, in the engine's slot order
    manifest.json                 written last; names the base, the config and the hashes

No member may be a pickle, and no reader extracts the archive: it streams the names it knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate
from math import prod
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from limner.contracts.onboarding import ModelId

MANIFEST: Final = "manifest.json"
ADAPTER: Final = "adapter.safetensors"
PACKED: Final = "adapter.packed.safetensors"
TRITON_CONFIG: Final = "config.pbtxt"
TRITON_SHELL: Final = "1/model.py"

MEMBERS: Final = (TRITON_CONFIG, TRITON_SHELL, ADAPTER, PACKED, MANIFEST)
# Generous for SDXL at rank 128 with convolutions; a reader stops here.
MAX_MEMBER_BYTES: Final = 2_000_000_000
MAX_MANIFEST_BYTES: Final = 256_000

# Hashes of the two members that are the same in every artifact, by release, the newest last. An
# artifact lives longer than the release that made it: none is ever removed. (The first pair does
# not load under Triton; the other shell serves it.)
SHELL_SHA256: Final = {
    TRITON_CONFIG: (
        "b4019f54150694fc92a6970b113e820d27ef80fc5bc27507337e05df6078da97",
        "b28d43a142280dcba01e89d76a214f3e4a89ac8c02360d59c26feee6f6e13d3e",
    ),
    TRITON_SHELL: (
        "95d293ea84d9a08e90cee49b02b4fa492cc0c22f03a8eb414df39f66ecabcbee",
        "176b8a7814a71875926f87f43fc70651676fc594c50f37d4de8c411d8fb4f556",
    ),
}

PACKED_TENSOR: Final = "slot"
PACKED_LAYOUT_KEY: Final = "limner_layout_sha256"


class Manifest(BaseModel):
    """What an artifact says of itself.

    Attributes:
        schema_version: Version of this form.
        request_id: The request that it was trained for.
        base_id: Name of the base.
        base_sha256: Hash of the base's weights (``training`` and ``inference`` compute it alike).
        rank: Rank of the LoRA matrices.
        token: The word that stands for the subject.
        subject_phrase: Token and kind; what ``{token}`` is replaced by.
        target_modules: Names of the adapted layers as ``unet.<layer>``, sorted.
        layout_sha256: Hash of the packed layout.
        config_sha256: Hash of the training config.
        adapter_sha256: Hash of ``adapter.safetensors``.
        packed_sha256: Hash of ``adapter.packed.safetensors``.
        metrics: Figures of the training: ``loss``, ``steps``, ``photos`` …; no wall times, so that
            equal adapters give equal archives.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    request_id: str
    model_id: ModelId = "default"
    base_id: str
    base_sha256: str
    rank: int = Field(ge=1)
    token: str
    subject_phrase: str
    target_modules: tuple[str, ...]
    layout_sha256: str
    config_sha256: str
    adapter_sha256: str
    packed_sha256: str
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Slice:
    """Where one LoRA matrix lies in the flat tensor: ``flat[start:stop].reshape(shape)``."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class PackedLayout:
    """The order of all LoRA matrices of a base in one flat tensor.

    Names are those of diffusers' state dict without prefix or suffix changes
    (``unet.<layer>.lora_A.weight``, shape ``[rank, in, …]``; ``lora_B``, shape
    ``[out, rank, …]``), sorted, so that both sides derive the same order by themselves.
    """

    slices: tuple[Slice, ...]

    @classmethod
    def of(cls, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> PackedLayout:
        """The layout of tensors with these names and shapes, given in any order."""
        ordered = sorted(shapes)
        stops = list(accumulate(prod(shape) for _, shape in ordered))
        starts = [0, *stops[:-1]]
        return cls(
            tuple(
                Slice(name, tuple(shape), start, stop)
                for (name, shape), start, stop in zip(ordered, starts, stops, strict=True)
            )
        )

    def __iter__(self) -> Iterator[Slice]:
        return iter(self.slices)

    @property
    def size(self) -> int:
        """Number of elements of the flat tensor."""
        return self.slices[-1].stop if self.slices else 0

    def digest(self) -> str:
        """SHA-256 over names and shapes, as 64 hexadecimal digits."""
        canonical = json.dumps([(item.name, item.shape) for item in self.slices])
        return hashlib.sha256(canonical.encode()).hexdigest()


def shell_files() -> dict[str, bytes]:
    """The two members that are the same in every artifact: Triton's config and thin model."""
    shell = resources.files("limner.contracts") / "shell"
    return {
        TRITON_CONFIG: (shell / "config.pbtxt").read_bytes(),
        TRITON_SHELL: (shell / "model.py").read_bytes(),
    }
