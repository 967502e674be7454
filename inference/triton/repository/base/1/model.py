"""Where Triton looks for ``base``. All of it is in ``inference.triton.resident``."""

import sys
from pathlib import Path

# Triton's stub reads no PYTHONPATH.
sys.path.insert(0, str(Path(__file__).resolve().parents[5]))

from inference.triton.resident import TritonPythonModel

__all__ = ["TritonPythonModel"]
