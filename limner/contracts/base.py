"""The base: the frozen pipeline under all adapters, and its card.

A base is a folder in the layout of a diffusers ``StableDiffusionPipeline`` with one more file,
``limner-base.json``, its card.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limner.contracts.errors import LimnerError
from limner.contracts.training import explain

CARD: Final = "limner-base.json"
TINY_BASE_ID: Final = "tiny-1"


class BaseCard(BaseModel):
    """What a base says of itself.

    Attributes:
        base_id: Name of the base; the key behind ``base/`` in S3.
        resolution_px: Side of the square images that it was trained on.
        title: One line for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    base_id: str
    resolution_px: int = Field(ge=8)
    title: str = ""


def read_card(folder: Path) -> BaseCard:
    """Reads the card of the base in a folder.

    Raises:
        LimnerError: ``BASE_INVALID``, if there is no card or it is not sound.
    """
    path = folder / CARD
    try:
        return BaseCard.model_validate_json(path.read_bytes())
    except OSError as error:
        raise LimnerError("BASE_INVALID", f"The base has no readable {CARD}.") from error
    except ValidationError as error:
        raise LimnerError("BASE_INVALID", f"{CARD}: {explain(error)}.") from error


def base_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a base's weights and configs, 64 hexadecimal digits.

    Training writes it into each manifest and inference compares it before it loads an adapter.
    """
    digest = hashlib.sha256()
    files = (p for p in folder.rglob("*") if p.suffix in {".safetensors", ".json", ".txt"})
    for path in sorted(files, key=lambda p: p.relative_to(folder).as_posix()):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
