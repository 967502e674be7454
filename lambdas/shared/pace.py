"""What past fine-tunes have taken: one row for each base on each type of machine.

::

    #pace#<base>#<machine type>     sums over all fine-tunes that were counted: ADD, so two batches
                                    that end at once lose nothing
    #pace#job#<job name>            this job's fine-tunes are in the sums; expires by itself

Both are written in one transaction, under the condition that the second is not there yet: whoever
asks again, or never got the reply, counts nothing twice. Neither row tells of any user.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError

from lambdas.shared.log import log_event
from limner.contracts import keys
from limner.contracts.packing import PastRuns

if TYPE_CHECKING:
    from lambdas.shared.dynamo import Table

# An execution, its redrives included, is over by then.
_MARK_S: Final = 60 * 86_400
_SUMS: Final = tuple(field.name for field in fields(PastRuns))


class PaceRow:
    """One base on one type of machine.

    Args:
        requests: The table of requests.
        row: ``keys.PACE_ROW_TEMPLATE``, filled; empty in executions of older machines, of which
            nothing is known and nothing is counted.
        log: The function's log.
    """

    def __init__(self, requests: Table, row: str, log: logging.Logger) -> None:
        self._requests = requests
        self._row = row
        self._log = log

    def read(self) -> PastRuns:
        """The sums; those of nothing where there is no row, or where it cannot be read.

        A plan with the configured pace is better than none.
        """
        if not self._row:
            return PastRuns()
        try:
            row = self._requests.read({"request_id": self._row}) or {}
        except ClientError as error:
            log_event(self._log, "pace not read", code=error.response["Error"]["Code"])
            return PastRuns()
        return PastRuns(**{name: float(row.get(name, 0)) for name in _SUMS})

    def add(self, job_name: str, runs: PastRuns) -> None:
        """Counts a job's fine-tunes, unless they are counted already.

        No batch fails of a figure that is for planning: a refusal is logged.

        Args:
            job_name: The job.
            runs: All that are to be counted of it.
        """
        if not self._row or not runs.count:
            return
        mark = self._requests.member(
            {"request_id": keys.PACE_MARK_TEMPLATE.format(job_name)},
            update="SET #expires_at = :until",
            condition="attribute_not_exists(#expires_at)",
            values={":until": int(time.time()) + _MARK_S},
        )
        sums = self._requests.member(
            {"request_id": self._row},
            update="ADD " + ", ".join(f"#{name} :{name}" for name in _SUMS),
            condition="",
            values={f":{name}": value for name, value in asdict(runs).items()},
        )
        try:
            refused = self._requests.transact([mark, sums])
        except ClientError as error:
            log_event(self._log, "pace not counted", code=error.response["Error"]["Code"])
            return
        log_event(
            self._log,
            "pace was counted before" if refused else "pace counted",
            job_name=job_name,
            tasks=int(runs.count),
        )
