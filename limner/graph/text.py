"""Text for the drawing: measured without a font, wrapped, and free of what XML cannot hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

#: Widths of bold text to those of other text; of DejaVu Sans, which Linux falls back to.
BOLD: Final = 1.15
_NARROW: Final = frozenset("iljtfrI.,:;'`|!()[]{}/\\ ")
_WIDE: Final = frozenset("mwMW@%")
#: Control characters and lone surrogates: XML 1.0 has no way to write them.
_FORBIDDEN: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """Replaces what XML cannot hold by a visible mark.

    Args:
        text: Any text.

    Returns:
        The text; markup in it is left alone, escaping is the XML writer's work.
    """
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def width_of(text: str, size_px: float, *, bold: bool = False) -> float:
    """Estimates a text's width in a common sans-serif font, on the generous side.

    Args:
        text: One line.
        size_px: Font size in px.
        bold: Whether it is set in bold.

    Returns:
        The width in px.
    """
    ems = sum(map(_ems, text))
    return ems * size_px * (BOLD if bold else 1.0)


def _ems(char: str) -> float:
    if char in _NARROW:
        return 0.36
    if char in _WIDE:
        return 0.93
    if ord(char) > 0x2E80:
        return 1.05
    return 0.70 if char.isupper() else 0.59


def fit(text: str, width_px: float, size_px: float, *, bold: bool = False) -> str:
    """Cuts one line to a width.

    Args:
        text: One line.
        width_px: The width to fit in, in px.
        size_px: Font size in px.
        bold: Whether it is set in bold.

    Returns:
        The text, or its beginning with an ellipsis.
    """
    if width_of(text, size_px, bold=bold) <= width_px:
        return text
    while text and width_of(text + "…", size_px, bold=bold) > width_px:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, width_px: float, size_px: float, max_lines: int) -> list[str]:
    """Breaks a text into lines, between words where it can.

    Args:
        text: The text; any white space separates words.
        width_px: Width of a line in px.
        size_px: Font size in px.
        max_lines: The most lines there may be; the last ends in an ellipsis if text is left.

    Returns:
        The lines, none of them wider than `width_px`.
    """
    lines = [""]
    joints = [""]
    for joint, piece in _pieces(text, width_px, size_px):
        candidate = lines[-1] + joint + piece if lines[-1] else piece
        if width_of(candidate, size_px) <= width_px:
            lines[-1] = candidate
        else:
            lines.append(piece)
            joints.append(joint)
    if len(lines) > max_lines:
        rest = zip(joints[max_lines - 1 :], lines[max_lines - 1 :], strict=True)
        tail = "".join(joint + line for joint, line in rest).strip()
        lines = [*lines[: max_lines - 1], fit(tail, width_px, size_px)]
    return [line for line in lines if line]


def _pieces(text: str, width_px: float, size_px: float) -> Iterator[tuple[str, str]]:
    """The words, each after what joins it to the one before: a space.

    A word that is wider than a line comes in parts, which nothing joins.
    """
    for word in text.split():
        joint, rest = " ", word
        while width_of(rest, size_px) > width_px:
            count = 1
            while width_of(rest[: count + 1], size_px) <= width_px:
                count += 1
            marks = [at for at in range(count // 3, count) if _may_break_after(rest, at)]
            count = marks[-1] + 1 if marks else count
            yield joint, rest[:count]
            joint, rest = "", rest[count:]
        yield joint, rest


def _may_break_after(word: str, at: int) -> bool:
    """Whether a long word may be cut after this place: after a mark, or before a CamelCase hump."""
    return word[at] in "./:_-,;" or (word[at].islower() and word[at + 1 : at + 2].isupper())


def duration(seconds: float) -> str:
    """Writes a duration the way a person says it.

    Args:
        seconds: The duration in seconds, not negative.

    Returns:
        For example ``40 ms``, ``42.1 s``, ``3 min 5 s`` or ``2 h 10 min``.
    """
    if seconds < 0.001:
        return "<1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
