"""Deliveries of EventBridge rules: retried, and kept in the target's dead-letter queue.

EventBridge user guide, "Using dead-letter queues to process undelivered events": "for errors that
result from missing permissions to a target, or if a target resource that no longer exists, no
retry attempts will happen ... EventBridge sends these events directly to the target DLQ"; messages
carry RULE_ARN, TARGET_ARN, ERROR_CODE, ERROR_MESSAGE, EXHAUSTED_RETRY_CONDITION and RETRY_ATTEMPTS.
"Event retry policy": "By default, EventBridge retries sending the event for 24 hours and up to 185
times with an exponential back off and jitter". ministack drops what it cannot deliver, and invokes
functions once.
"""

from __future__ import annotations

import contextvars
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from limner.local.clock import Clock
from limner.local.errors import ServiceError
from limner.local.json_types import Json
from limner.local.seams import Module
from limner.local.trouble import Trouble

_OK: Final = 200
_RETRIES: Final = 185
_MAX_AGE_S: Final = 86_400
_FIRST_WAIT_S: Final = 1.0
_LONGEST_WAIT_S: Final = 600.0
_log = logging.getLogger("limner.local.rules")


class NotDelivered(Exception):  # noqa: N818  # as EventBridge speaks of it
    """A target did not take an event.

    Args:
        code: ERROR_CODE.
        message: ERROR_MESSAGE.
        is_final: Whether no retry can help.
    """

    def __init__(self, code: str, message: str, *, is_final: bool) -> None:
        self.code = code
        self.message = message
        self.is_final = is_final
        super().__init__(message)


@dataclass
class _Delivery:
    """What the dispatch below ``_invoke_target`` says about one delivery."""

    failure: NotDelivered | None = None


_current: contextvars.ContextVar[_Delivery | None] = contextvars.ContextVar(
    "delivery", default=None
)


def install(
    eventbridge: Module,
    functions: Module,
    engine: Module,
    queues: Module,
    clock: Clock,
    trouble: Trouble,
) -> None:
    """Installs the corrections of this module."""
    eventbridge._dispatch_to_stepfunctions = _noted(_start_execution(engine, trouble))
    eventbridge._dispatch_to_lambda = _noted(_invoke_function(functions, trouble))
    eventbridge._dispatch_to_sqs = _noted(_if_queue_exists(eventbridge, queues))
    eventbridge._invoke_target = _with_retries(eventbridge, queues, clock)


def _noted(dispatch: Callable[..., None]) -> Callable[..., None]:
    """The engine swallows exceptions of a dispatch, so they are noted before."""

    def dispatch_and_note(*arguments: Json) -> None:
        delivery = _current.get()
        try:
            dispatch(*arguments)
        except NotDelivered as failure:
            if delivery is None:
                raise
            delivery.failure = failure

    return dispatch_and_note


def _refused(error: ServiceError) -> NotDelivered:
    code = "THROTTLING" if "Thrott" in error.code else "ERROR_FROM_TARGET"
    return NotDelivered(code, error.message, is_final=False)


def _start_execution(engine: Module, trouble: Trouble) -> Callable[[str, str], None]:
    def start_execution(machine: str, payload: str) -> None:
        if engine._resolve_state_machine_arn(machine) is None:
            raise NotDelivered("NO_RESOURCE", f"{machine} does not exist.", is_final=True)
        try:
            status, _, body = trouble.call(
                "states:StartExecution",
                payload,
                lambda: engine._start_execution({"stateMachineArn": machine, "input": payload}),
            )
        except ServiceError as error:
            raise _refused(error) from error
        if status != _OK:
            message = json.loads(body).get("message", "")
            raise NotDelivered("ERROR_FROM_TARGET", message, is_final=True)

    return start_execution


def _invoke_function(functions: Module, trouble: Trouble) -> Callable[[str, str], None]:
    def invoke(arn: str, payload: str) -> None:
        function, config, _ = functions._get_func_record_for_ref(arn)
        if not function or not config:
            raise NotDelivered("NO_RESOURCE", f"{arn} does not exist.", is_final=True)
        try:
            event = json.loads(payload)
        except json.JSONDecodeError:
            event = {"body": payload}
        record = functions._execution_record_for_config(function, config)
        try:
            trouble.call(
                "lambda:InvokeAsync",
                payload,
                lambda: functions.invoke_async_with_retry(record, event),
            )
        except ServiceError as error:
            raise _refused(error) from error

    return invoke


def _if_queue_exists(eventbridge: Module, queues: Module) -> Callable[..., None]:
    dispatch = eventbridge._dispatch_to_sqs

    def send(arn: object, payload: str, parameters: Json = None) -> None:
        if not queues._queue_by_arn(str(arn)):
            raise NotDelivered("NO_RESOURCE", f"{arn} does not exist.", is_final=True)
        dispatch(arn, payload, parameters)

    return send


def _with_retries(eventbridge: Module, queues: Module, clock: Clock) -> Callable[..., None]:
    deliver = eventbridge._invoke_target

    def attempt(target: Json, event: Json, rule: Json, view: Json) -> NotDelivered | None:
        delivery = _Delivery()
        token = _current.set(delivery)
        try:
            deliver(target, event, rule, view)
        finally:
            _current.reset(token)
        return delivery.failure

    def follow_up(failure: NotDelivered, target: Json, event: Json, rule: Json, view: Json) -> None:
        policy = target.get("RetryPolicy") or {}
        retries = int(policy.get("MaximumRetryAttempts", _RETRIES))
        age = clock.deadline(float(policy.get("MaximumEventAgeInSeconds", _MAX_AGE_S)))
        done, condition = 0, ""
        found: NotDelivered | None = failure
        while found is not None:
            failure = found
            if failure.is_final:
                break
            if done >= retries or age.passed():
                condition = (
                    "MaximumRetryAttempts" if done >= retries else "MaximumEventAgeInSeconds"
                )
                break
            clock.sleep(min(_FIRST_WAIT_S * 2**done, _LONGEST_WAIT_S))
            done += 1
            found = attempt(target, event, rule, view)
        if found is not None:
            _bury(eventbridge, queues, failure, condition, done, target, event, rule)

    def invoke_target(target: Json, event: Json, rule: Json, view: Json = None) -> None:
        failure = attempt(target, event, rule, view)
        if failure is None:
            return
        if failure.is_final:
            follow_up(failure, target, event, rule, view)  # without any retry
            return
        threading.Thread(
            target=contextvars.copy_context().run,
            args=(follow_up, failure, target, event, rule, view),
            name="rule-retry",
            daemon=True,
        ).start()

    return invoke_target


def _bury(
    eventbridge: Module,
    queues: Module,
    failure: NotDelivered,
    condition: str,
    retries: int,
    target: Json,
    event: Json,
    rule: Json,
) -> None:
    """Sends the event to the target's dead-letter queue, if it has one."""
    _log.warning("%s did not reach %s: %s", rule.get("Name"), target.get("Arn"), failure.code)
    queue = (target.get("DeadLetterConfig") or {}).get("Arn")
    if not queue:
        return
    attributes = {
        "RULE_ARN": rule.get("Arn", ""),
        "TARGET_ARN": target.get("Arn", ""),
        "ERROR_CODE": failure.code,
        "ERROR_MESSAGE": failure.message or failure.code,
        "RETRY_ATTEMPTS": str(retries),
        **({"EXHAUSTED_RETRY_CONDITION": condition} if condition else {}),
    }
    body = json.dumps(eventbridge._pattern_event_view(event).event_with_detail())
    found = queues._queue_by_arn(queue)
    if not found:
        _log.warning("the dead-letter queue %s does not exist", queue)
        return
    queues._act_send_message(
        {
            "QueueUrl": found["url"],
            "MessageBody": body,
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value}
                for name, value in attributes.items()
            },
        },
        found["url"],
    )
