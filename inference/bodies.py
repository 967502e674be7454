"""What both shells take from outside: bodies and folders, refused unless they have their form."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from limner.contracts.errors import LimnerError
from limner.contracts.generation import MAX_BODY_BYTES
from limner.contracts.training import explain

Body = TypeVar("Body", bound=BaseModel)

TOO_LARGE: Final = f"The body exceeds {MAX_BODY_BYTES} bytes."


def parse_body(content: bytes, form: type[Body]) -> Body:
    """Reads a JSON body.

    Args:
        content: The body as it came.
        form: What it must be.

    Raises:
        LimnerError: ``INVALID_INPUT``, if it is too large, no JSON, or not of the form.
    """
    if len(content) > MAX_BODY_BYTES:
        raise LimnerError("INVALID_INPUT", TOO_LARGE)
    try:
        return form.model_validate_json(content)
    except ValidationError as error:
        raise LimnerError("INVALID_INPUT", f"Body: {explain(error)}.") from error


def model_folder(url: str, root: Path) -> Path:
    """The folder of a model, if it lies under the models root without detours.

    Args:
        url: From the platform, ``/opt/ml/models/<hash>/model``.
        root: The models root, trusted.

    Raises:
        LimnerError: ``INVALID_INPUT``, if the path leaves the root, passes a link, or is no
            folder.
    """
    path = Path(url)
    if "\0" in url or ".." in path.parts or not path.is_relative_to(root) or path == root:
        raise LimnerError("INVALID_INPUT", "url must be a folder under the models root.")
    steps = path.relative_to(root).parts
    folder = root
    for step in steps:
        folder /= step
        if folder.is_symlink() or not folder.is_dir():
            raise LimnerError("INVALID_INPUT", "url must be a folder, reached without links.")
    return folder
