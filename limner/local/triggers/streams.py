"""DynamoDB streams that invoke functions: retries, bisection, partial failures, destinations.

Lambda developer guide, "Process DynamoDB records with Lambda":

* "If the error handling measures fail, Lambda discards the records and continues processing batches
  from the stream"; the on-failure destination is told which ones.
* BisectBatchOnFunctionError: "Retrying with smaller batches isolates bad records ... Splitting a
  batch does not count towards the retry quota."
* ReportBatchItemFailures: "Lambda uses the lowest sequence number as the checkpoint" and retries
  from there; with bisection, "the batch is bisected at the returned sequence number and Lambda
  retries only the remaining records". An empty list is a success; an empty, null or misnamed
  itemIdentifier a failure of the whole batch.
* MaximumRetryAttempts and MaximumRecordAgeInSeconds: -1, the default, is for ever.

ministack retries a failed batch for ever and knows none of the others but the age. The table's
stream is one shard here, and one batch of a mapping is worked on at a time.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from limner.local.clock import Clock
from limner.local.json_types import Json
from limner.local.seams import Module

Record = dict[str, Any]

EXHAUSTED: Final = "RetryAttemptsExhausted"
TOO_OLD: Final = "MaxRecordAgeExceeded"
_FIRST_WAIT_S: Final = 1.0
_LONGEST_WAIT_S: Final = 60.0
# A turned clock must not make a poison record spin.
_LEAST_WAIT_S: Final = 0.02
_log = logging.getLogger("limner.local.streams")


@dataclass(frozen=True)
class Batch:
    """Records that are sent together.

    Attributes:
        records: At least one.
        attempts: How often exactly these records have failed.
    """

    records: Sequence[Record]
    attempts: int = 0


def first_failure(result: Mapping[str, Any], batch: Batch, *, reports: bool) -> int | None:
    """Where the function has failed.

    Args:
        result: ministack's result of the invocation: ``error``, ``body``.
        batch: What was sent.
        reports: Whether the mapping has ReportBatchItemFailures.

    Returns:
        Position of the first record that has not been processed; None if all have.
    """
    if result.get("error"):
        return 0
    failures = _reported(result.get("body")) if reports else []
    if not failures:
        return None
    numbers = [_sequence_number(record) for record in batch.records]
    failed = [item.get("itemIdentifier") if isinstance(item, dict) else None for item in failures]
    if any(number not in numbers for number in failed):
        return 0
    return min(numbers.index(str(number)) for number in failed)


def after_failure(batch: Batch, position: int, *, bisects: bool, retries: int) -> list[Batch]:
    """What is sent next after a failure.

    Args:
        batch: What was sent.
        position: Of the first record that has not been processed.
        bisects: BisectBatchOnFunctionError.
        retries: MaximumRetryAttempts; -1 is for ever.

    Returns:
        Batches in order; none if the batch is given up.
    """
    if position > 0:
        return [Batch(batch.records[position:])]  # another batch, so its retries begin anew
    size = len(batch.records)
    if bisects and size > 1:
        half = size // 2
        return [Batch(batch.records[:half]), Batch(batch.records[half:])]
    if 0 <= retries <= batch.attempts:
        return []
    return [Batch(batch.records, batch.attempts + 1)]


def split_by_age(batch: Batch, max_age_s: int, now: float) -> tuple[list[Record], Batch | None]:
    """Takes out the records that are too old to be sent; the stream's order is that of age.

    Args:
        batch: What is about to be sent.
        max_age_s: MaximumRecordAgeInSeconds; -1 is for ever.
        now: Epoch seconds.

    Returns:
        The old records, and the rest if there is one.
    """
    if max_age_s < 0:
        return [], batch
    old = [record for record in batch.records if now - _created_at(record) > max_age_s]
    if not old:
        return [], batch
    rest = batch.records[len(old) :]
    return old, Batch(rest) if rest else None


class StreamMappings:
    """Event source mappings of DynamoDB streams, instead of ministack's.

    Args:
        functions: ``ministack.services.lambda_svc``.
        tables: ``ministack.services.dynamodb``.
        responses: ``ministack.core.responses``.
        clock: Back-off follows its dial ``waits``.
    """

    def __init__(self, functions: Module, tables: Module, responses: Module, clock: Clock) -> None:
        self._functions = functions
        self._tables = tables
        self._responses = responses
        self._clock = clock
        self._lock = threading.Lock()
        self._busy: set[str] = set()

    def poll(self) -> bool:
        """Begins to work on the next batch of each mapping; ministack's poller calls it.

        Returns:
            Whether there was any.
        """
        found = False
        for account, region, mapping in self._functions._iter_all_esms():
            with self._responses.request_scope(account, region):
                found = self._begin(mapping) or found
        return found

    def _begin(self, mapping: dict[str, Any]) -> bool:
        name = mapping["UUID"]
        table = self._table_of(mapping)
        if table is None or not mapping.get("Enabled", True) or self._function(mapping) is None:
            return False
        with self._lock:
            if name in self._busy:
                return False
            positions = self._functions._dynamodb_stream_positions
            self._functions._init_stream_position(
                name, mapping["EventSourceArn"], mapping.get("StartingPosition", "LATEST")
            )
            start = max(positions[name], self._tables.stream_start_position(table))
            records = self._tables.stream_records_since(table, start, mapping.get("BatchSize", 100))
            if not records:
                return False
            self._busy.add(name)
        context = contextvars.copy_context()
        threading.Thread(
            target=context.run,
            args=(self._work, mapping, list(records), start + len(records)),
            name=f"stream-{table}",
            daemon=True,
        ).start()
        return True

    def _work(self, mapping: dict[str, Any], records: list[Record], end: int) -> None:
        name = mapping["UUID"]
        try:
            wanted = self._functions._apply_filter_criteria(records, mapping)
            if wanted:
                self._settle(mapping, Batch(wanted))
            with self._functions._dynamodb_stream_positions_lock:
                if name in self._functions._dynamodb_stream_positions:  # or it was deleted
                    self._functions._dynamodb_stream_positions[name] = end
        except Exception:  # noqa: BLE001  # the end of the thread; the batch is read again
            _log.exception("mapping %s", name)
            self._clock.sleep(_FIRST_WAIT_S)
        finally:
            with self._lock:
                self._busy.discard(name)
            self._functions._esm_wake.set()

    def _settle(self, mapping: dict[str, Any], batch: Batch) -> None:
        """Until each record is processed or given up."""
        todo = [batch]
        failures = 0
        while todo and self._is_on(mapping):
            old, rest = split_by_age(
                todo.pop(0), int(mapping.get("MaximumRecordAgeInSeconds", -1)), time.time()
            )
            if old:
                self._give_up(mapping, old, {}, TOO_OLD)
            if rest is None:
                continue
            result = self._invoke(mapping, rest)
            reports = "ReportBatchItemFailures" in (mapping.get("FunctionResponseTypes") or [])
            position = first_failure(result, rest, reports=reports)
            if position is None:
                failures = 0
                mapping["LastProcessingResult"] = "OK"
                continue
            failures += 1
            mapping["LastProcessingResult"] = "PROBLEM: Function call failed"
            following = after_failure(
                rest,
                position,
                bisects=_is_true(mapping.get("BisectBatchOnFunctionError")),
                retries=int(mapping.get("MaximumRetryAttempts", -1)),
            )
            if not following:
                self._give_up(mapping, rest.records, result, EXHAUSTED)
                continue
            todo[:0] = following
            time.sleep(_LEAST_WAIT_S)
            self._clock.sleep(
                min(_FIRST_WAIT_S * 2 ** (failures - 1), _LONGEST_WAIT_S),
                lambda: not self._is_on(mapping),
            )

    def _invoke(self, mapping: dict[str, Any], batch: Batch) -> dict[str, Any]:
        function = self._function(mapping)
        if function is None:
            return {"error": True, "function_error": "ResourceNotFoundException"}
        event = {"Records": list(batch.records)}
        result: dict[str, Any] = self._functions._execute_function(function, event)
        return result

    def _give_up(
        self,
        mapping: dict[str, Any],
        records: Sequence[Record],
        result: Mapping[str, Any],
        condition: str,
    ) -> None:
        _log.warning("mapping %s gives up %d records: %s", mapping["UUID"], len(records), condition)
        self._functions._send_ddb_stream_failure_record(
            mapping,
            self._function(mapping) or {},
            list(records),
            mapping["EventSourceArn"],
            result,
            condition,
        )

    def _is_on(self, mapping: dict[str, Any]) -> bool:
        return mapping["UUID"] in self._functions._esms and bool(mapping.get("Enabled", True))

    def _function(self, mapping: dict[str, Any]) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._functions._get_func_record_for_qualifier(
            mapping["FunctionName"], mapping.get("Qualifier")
        )[0]
        return found

    def _table_of(self, mapping: dict[str, Any]) -> str | None:
        """The table whose current stream the mapping reads."""
        source = mapping.get("EventSourceArn", "")
        _, _, rest = source.partition(":table/")
        name, is_stream, _ = rest.partition("/stream/")
        table = self._tables._tables.get(name) if is_stream else None
        return name if table and table.get("LatestStreamArn") == source else None


def install(functions: Module, tables: Module, responses: Module, clock: Clock) -> None:
    """Installs the correction of this module."""
    poll: Callable[[], bool] = StreamMappings(functions, tables, responses, clock).poll
    functions._poll_dynamodb_streams = poll


def _reported(body: Json) -> list[Json]:
    failures = body.get("batchItemFailures") if isinstance(body, dict) else None
    return failures if isinstance(failures, list) else []


def _sequence_number(record: Record) -> str:
    return str(record["dynamodb"]["SequenceNumber"])


def _created_at(record: Record) -> float:
    return float(record["dynamodb"].get("ApproximateCreationDateTime", time.time()))


def _is_true(value: object) -> bool:
    return str(value).lower() == "true"  # templates may carry it as text
