"""The parity table names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_test_that_the_parity_table_names_exists() -> None:
    text = (ROOT / "docs" / "parity.md").read_text()
    named = re.findall(r"`[^`]*?\b(test_[a-z0-9_]+)(…?)`|…(test_[a-z0-9_]+)(…?)", text)
    names = {(first or second, bool(one or two)) for first, one, second, two in named}
    sources = [
        *(ROOT / "tests/workflows").glob("test_laptop_*.py"),
        *Path(__file__).parent.glob("*"),
    ]
    existing = {
        name
        for path in sources
        if path.suffix == ".py"
        for name in [path.stem, *re.findall(r"def (test_\w+)", path.read_text())]
    }
    assert len(names) > 40
    missing = [
        name
        for name, cut in names
        if not (any(it.startswith(name) for it in existing) if cut else name in existing)
    ]
    assert missing == []
