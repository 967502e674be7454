"""An error that nobody foresaw, in words that may be shown: no prompt, no name of a file."""

from __future__ import annotations

import sys
import traceback

from limner.contracts.errors import LimnerError

# SageMaker shows this much of output/failure as FailureReason (SageMaker developer guide, "How
# Amazon SageMaker AI Signals Algorithm Success and Failure"); a task's reason gets no more.
MAX_FAILURE_CHARS = 1024


def unforeseen(error: Exception) -> LimnerError:
    """``TRAINING_FAILED`` with the kind and the place of an error; its frames go to the log.

    The error's own text stays out of both: it may quote a prompt or the name of a photo.
    """
    frames = traceback.extract_tb(error.__traceback__)
    sys.stderr.write("".join(traceback.format_list(frames)))
    place = f"{frames[-1].name}, line {frames[-1].lineno}" if frames else "start"
    return LimnerError("TRAINING_FAILED", f"{type(error).__name__} in {place}.")
