"""Writes the pages that are made from code: ``python -m docs``."""

from pathlib import Path

from limner.contracts.errors import as_markdown

if __name__ == "__main__":
    Path(__file__).with_name("errors.md").write_text(as_markdown(), encoding="utf-8")
