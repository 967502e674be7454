"""The training config's types and bounds as plain data, for functions that carry no pydantic.

``TrainingConfig`` is the definition; a test keeps this table equal to it, entry by entry. What
``complete_config`` accepts, ``TrainingConfig`` accepts, and both make the same document of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from limner.contracts.errors import LimnerError

# What pydantic strips: the White_Space of Unicode. Python's own ``strip`` takes four more.
_BLANKS: Final = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within bounds, both included."""

    default: int
    least: int
    most: int

    def accept(self, value: object) -> int:
        """Returns the value, or raises ``ValueError`` with the rule."""
        number = value if isinstance(value, int) and not isinstance(value, bool) else None
        if number is not None and self.least <= number <= self.most:
            return number
        raise ValueError(f"must be a whole number from {self.least} to {self.most}")


@dataclass(frozen=True, slots=True)
class Real:
    """A number within bounds; the lower one is left out where ``above`` is set."""

    default: float
    least: float
    most: float
    above: bool = False

    def accept(self, value: object) -> float:
        """Returns the value as a float, or raises ``ValueError`` with the rule."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value) if abs(value) <= self.most else math.inf
            lowest = number > self.least if self.above else number >= self.least
            if lowest and number <= self.most:
                return number
        words = "above" if self.above else "from"
        raise ValueError(f"must be a number {words} {self.least:g}, up to {self.most:g}")


@dataclass(frozen=True, slots=True)
class Text:
    """A text that matches a pattern."""

    default: str
    pattern: str
    max_chars: int | None = None

    def accept(self, value: object) -> str:
        """Returns the value, or raises ``ValueError`` with the rule."""
        # ``$`` of Python lets a last line feed through, that of pydantic does not.
        whole = self.pattern.removeprefix("^").removesuffix("$")
        matches = isinstance(value, str) and re.fullmatch(whole, value)
        if isinstance(value, str) and matches and len(value) <= (self.max_chars or len(value)):
            return value
        limit = "" if self.max_chars is None else f", at most {self.max_chars} characters"
        raise ValueError(f"must match {self.pattern}{limit}")


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    default: str
    words: tuple[str, ...]

    def accept(self, value: object) -> str:
        """Returns the value, or raises ``ValueError`` with the rule."""
        if isinstance(value, str) and value in self.words:
            return value
        raise ValueError(f"must be one of {', '.join(self.words)}")


@dataclass(frozen=True, slots=True)
class Flag:
    """Yes or no."""

    default: bool

    def accept(self, value: object) -> bool:
        """Returns the value, or raises ``ValueError`` with the rule."""
        if isinstance(value, bool):
            return value
        raise ValueError("must be true or false")


@dataclass(frozen=True, slots=True)
class Prompts:
    """A few texts that are not blank; the white space around them does not count."""

    default: tuple[str, ...]
    max_items: int
    max_chars: int

    def accept(self, value: object) -> list[str]:
        """Returns the texts, or raises ``ValueError`` with the rule."""
        if isinstance(value, list | tuple) and len(value) <= self.max_items:
            texts = [text.strip(_BLANKS) for text in value if isinstance(text, str)]
            sound = all(0 < len(t) <= self.max_chars and _is_unicode(t) for t in texts)
            if sound and len(texts) == len(value):
                return texts
        raise ValueError(
            f"must be at most {self.max_items} texts of 1 to {self.max_chars} characters"
        )


def _is_unicode(text: str) -> bool:
    # JSON can hold halves of surrogate pairs; no reader takes them.
    return not any("\ud800" <= character <= "\udfff" for character in text)


Rule = Whole | Real | Text | Choice | Flag | Prompts

RULES: Final[dict[str, Rule]] = {
    "seed": Whole(0, 0, 2**31 - 1),
    "steps": Whole(160, 1, 20_000),
    "batch_size": Whole(8, 1, 64),
    "learning_rate": Real(5e-3, 0, 1, above=True),
    "rank": Whole(32, 1, 256),
    "target": Choice("all", ("attention", "transformer", "all")),
    "token": Text("sks", r"^[a-z]{2,12}$"),
    "subject": Text("", r"^[a-z]*( [a-z]+)?$", max_chars=40),
    "augmentations": Whole(16, 1, 256),
    "min_crop": Real(0.94, 0, 1, above=True),
    "preview_prompts": Prompts(
        ("a photo of {token}", "a photo of {token} on a blue background"), 8, 400
    ),
    "preview_steps": Whole(20, 1, 100),
    "preview_guidance": Real(3.0, 0, 20),
    "snr_gamma": Real(0.0, 0, 100),
    "prior_images": Whole(0, 0, 1_000),
    "prior_weight": Real(1.0, 0, 10),
    "class_prompt": Text("", r"^[ -~]*$", max_chars=400),
    "gradient_checkpointing": Flag(False),
    "precision": Choice("auto", ("auto", "float32", "bfloat16")),
}

# Fields that configs did not always have. Their defaults are what was done before, and are left
# out of digests: a wish, or an adapter, is the same whether it was told of them or not.
_LATER: Final = (
    "snr_gamma",
    "prior_images",
    "prior_weight",
    "class_prompt",
    "gradient_checkpointing",
    "precision",
)

ConfigValue = int | float | str | bool | list[str]


def complete_config(given: Mapping[str, object]) -> dict[str, ConfigValue]:
    """Checks a training config and fills in what it leaves out.

    Args:
        given: Some of the fields of ``TrainingConfig``, as JSON has them.

    Returns:
        All fields, as ``TrainingConfig.model_dump(mode="json")`` has them.

    Raises:
        LimnerError: ``INVALID_INPUT``, naming each wrong field with its rule, never its value.
    """
    unknown = sorted(str(name)[:40] for name in given if name not in RULES)
    problems = [f"{name!r} is no field" for name in unknown[:5]]
    config: dict[str, ConfigValue] = {}
    for name, rule in RULES.items():
        try:
            config[name] = rule.accept(given.get(name, rule.default))
        except ValueError as reason:
            problems.append(f"{name} {reason}")
    if problems:
        raise LimnerError("INVALID_INPUT", f"config: {'; '.join(problems)}.")
    return config


def without_later(config: Mapping[str, object]) -> dict[str, object]:
    """A whole config as digests have it."""
    return {
        name: value
        for name, value in config.items()
        if name not in _LATER or value != RULES[name].default
    }
