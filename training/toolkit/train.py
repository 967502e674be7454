"""The entry script for AWS's training toolkit, which starts scripts and no modules.

``sagemaker_program=training/toolkit/train.py``, with this repository as the source folder. It has
a folder to itself: a script's folder is where Python looks first, and no module of ours shall
stand for one of the standard library.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from training.__main__ import main

if __name__ == "__main__":
    sys.exit(main())  # the toolkit's arguments repeat hyperparameters.json, which main reads
