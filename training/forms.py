"""Reads JSON of an agreed form; says what is wrong with it, and quotes no value of it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from limner.contracts.errors import LimnerError
from limner.contracts.training import explain

_Form = TypeVar("_Form", bound=BaseModel)


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        LimnerError: ``INVALID_INPUT``, naming the file.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise LimnerError(
            "INVALID_INPUT", f"{path.name} cannot be read: {error.strerror}."
        ) from error


def read_form(path: Path, form: type[_Form]) -> _Form:
    """Reads a JSON file of this form.

    Raises:
        LimnerError: ``INVALID_INPUT``, naming the file and each wrong entry.
    """
    return parse_form(read_bytes(path), form, where=path.name)


def parse_form(text: bytes, form: type[_Form], *, where: str) -> _Form:
    """Reads JSON of this form.

    Args:
        text: The JSON.
        form: What it shall be.
        where: The place that a complaint names.

    Raises:
        LimnerError: ``INVALID_INPUT``, naming the place and each wrong entry.
    """
    try:
        return form.model_validate_json(text)
    except ValidationError as error:
        raise LimnerError("INVALID_INPUT", f"{where}: {explain(error)}.") from error
    except LimnerError as error:
        # The grammars of the ids raise this one, and quote the id.
        raise LimnerError("INVALID_INPUT", f"{where}: An id does not have its grammar.") from error
