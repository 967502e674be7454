"""The process boundary of the training container: ``python -m training``.

Exit code 0 and the work done (an artifact in ``model/``, or a result of each task of a batch), or
exit code 1 and the reason in ``output/failure``.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from limner.contracts.errors import LimnerError
from training.failures import MAX_FAILURE_CHARS, unforeseen
from training.files import write_atomically
from training.settings import failure_file, read_settings
from training.stopping import STOP, StoppedError


def _stop(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough; the reason must still be written
    STOP.ask()


def _fail(error: LimnerError) -> int:
    # A file name in the reason may be personal: the record gets it, the log gets the code.
    sys.stderr.write(f"event=failed code={error.code}\n")
    write_atomically(failure_file(), str(error)[:MAX_FAILURE_CHARS].encode())
    return 1


def main() -> int:
    """Runs the job; returns the exit code."""
    # StopTrainingJob and spot interruptions send SIGTERM, and SIGKILL 120 s later (SageMaker API
    # reference, StopTrainingJob).
    signal.signal(signal.SIGTERM, _stop)
    try:
        # Imported here, so that a broken installation or a SIGTERM in the meantime ends in
        # output/failure too.
        from training.program import train

        train(read_settings())
    except LimnerError as error:
        return _fail(error)
    except StoppedError:
        return _fail(LimnerError("TRAINING_STOPPED"))
    except Exception as error:  # noqa: BLE001 - the process boundary
        return _fail(unforeseen(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
