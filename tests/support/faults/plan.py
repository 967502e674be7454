"""A plan of faults for boto3 calls: one ``before-send`` handler, on any session or client.

botocore asks its ``before-send`` handlers for an answer when a call is signed and ready to go. So
one handler stands between every boto3 call and whatever answers it: AWS itself, the laptop, or
moto. Client code, Lambda handlers in this process and tests meet the same faults, and nothing in
them knows of it::

    boto3 call ─> botocore: serialize, sign ─> Plan ─> network (or moto) ─> parse ─> retry?
                                                 │                             ↑
                                                 └── an answer of our own ─────┘

Which call is struck depends on the seed, the rule and the number of the call under that rule, and
not on the order of threads: with the same calls, the same seed strikes the same number of them.
"""

from __future__ import annotations

import io
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final

import boto3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import ReadTimeoutError
from botocore.httpsession import URLLib3Session

# Connections that calls which pass may hold at once.
_POOL: Final = 64
# Services that answer in XML; all others that Limner calls speak JSON.
_REST_XML: Final = frozenset({"s3"})
_QUERY: Final = frozenset({"cloudformation", "sns", "sts"})


class Kind(StrEnum):
    """What happens to a call."""

    THROTTLE = "throttle"
    SERVER_ERROR = "server_error"
    SLOW_DOWN = "slow_down"
    ACCESS_DENIED = "access_denied"
    TIMEOUT = "timeout"
    LOST_REPLY = "lost_reply"
    LATENCY = "latency"
    DUPLICATE = "duplicate"


_ERRORS: Final[dict[Kind, tuple[int, str, str]]] = {
    Kind.THROTTLE: (400, "ThrottlingException", "Rate exceeded"),
    Kind.SERVER_ERROR: (500, "InternalServerError", "Internal server error"),
    Kind.SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate."),
    Kind.ACCESS_DENIED: (403, "AccessDeniedException", "User is not authorized"),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """Faults for the calls of one kind.

    Attributes:
        operation: ``<service id>:<operation>`` as botocore names them, such as
            ``dynamodb:UpdateItem`` or ``sfn:StartExecution``; ``*`` and ``?`` are wildcards.
        kind: What happens.
        probability: Share of the matching calls that are struck.
        count: How many at most; None is no limit.
        skip: Let that many matching calls pass first.
        matching: Only calls whose URL or body contains this text.
        code: AWS's error code, in place of the usual one of this kind.
        seconds: Of ``LATENCY``.
    """

    operation: str
    kind: Kind
    probability: float = 1.0
    count: int | None = None
    skip: int = 0
    matching: str = ""
    code: str = ""
    seconds: float = 0.0


class Plan:
    """Rules, and what they have done so far. Thread-safe.

    Args:
        rules: In this order; the first one that strikes decides.
        seed: Other seeds strike other calls.
        sleep: Waits the seconds of ``LATENCY``.
    """

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        *,
        seed: int = 0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rules = tuple(rules)
        self._seed = seed
        self._sleep = sleep
        self._lock = threading.Lock()
        self._seen: Counter[int] = Counter()
        self._struck: Counter[int] = Counter()
        self._network = URLLib3Session(max_pool_connections=_POOL)
        self.calls: Counter[str] = Counter()
        self.strikes: Counter[tuple[str, Kind]] = Counter()

    def install(self, target: Any) -> None:
        """Puts the plan before all calls of a client, or of a session's clients to come.

        Args:
            target: A boto3 session or a client.
        """
        events = target.events if isinstance(target, boto3.Session) else target.meta.events
        if (moto := _moto()) is not None:
            # botocore calls all handlers, also after one has answered: moto's would execute what
            # we have refused. We call it ourselves where a call goes through.
            events.unregister("before-send", moto)
        events.register("before-send", self._before_send)

    def struck(self, kind: Kind | None = None) -> int:
        """How many calls were struck, of one kind or of all."""
        return sum(n for (_, struck), n in self.strikes.items() if kind in (None, struck))

    def _before_send(
        self, event_name: str, request: AWSPreparedRequest, **_: object
    ) -> AWSResponse | None:
        _, service, operation = event_name.split(".")
        rule = self._choose(f"{service}:{operation}", request)
        if rule is None:
            return self._execute(event_name, request)
        match rule.kind:
            case Kind.LATENCY:
                self._sleep(rule.seconds)
                return self._execute(event_name, request)
            case Kind.DUPLICATE:
                self._execute(event_name, request)
                request.reset_stream()
                return self._execute(event_name, request)
            case Kind.TIMEOUT:
                raise ReadTimeoutError(endpoint_url=request.url)
            case Kind.LOST_REPLY:
                self._execute(event_name, request)
                request.reset_stream()
                raise ReadTimeoutError(endpoint_url=request.url)
        return error_answer(service, request.url, rule.kind, rule.code)

    def _choose(self, operation: str, request: AWSPreparedRequest) -> Rule | None:
        with self._lock:
            self.calls[operation] += 1
            for index, rule in enumerate(self._rules):
                if not fnmatchcase(operation, rule.operation):
                    continue
                if rule.matching and rule.matching not in _text(request):
                    continue
                number = self._seen[index]
                self._seen[index] += 1
                if number < rule.skip or self._struck[index] == rule.count:
                    continue
                if random.Random(f"{self._seed} {index} {number}").random() >= rule.probability:
                    continue
                self._struck[index] += 1
                self.strikes[operation, rule.kind] += 1
                return rule
        return None

    def _execute(self, event_name: str, request: AWSPreparedRequest) -> AWSResponse:
        moto = _moto()
        answer = moto(event_name, request) if moto is not None else None
        if answer is None:
            answer = self._network.send(request)
        if not request.stream_output:
            _ = answer.content
        return answer


def error_answer(service: str, url: str, kind: Kind, code: str = "") -> AWSResponse:
    """The answer of a service that refuses a call, in the form that botocore parses.

    Args:
        service: botocore's service id, such as ``dynamodb``.
        url: Of the request.
        kind: A kind that is an error of the service.
        code: In place of the kind's usual code.
    """
    status, usual, message = _ERRORS[kind]
    code = code or usual
    if service in _REST_XML:
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    elif service in _QUERY:
        body = (
            f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error>"
            "<RequestId>faults</RequestId></ErrorResponse>"
        )
    else:
        body = json.dumps({"__type": code, "message": message})
    headers = {"x-amzn-errortype": code, "content-length": str(len(body))}
    return AWSResponse(url, status, headers, _Body(body.encode()))


class _Body(io.BytesIO):
    """A body as urllib3 hands it on."""

    def stream(self, *_: object, **__: object) -> Any:
        yield self.read()


def _text(request: AWSPreparedRequest) -> str:
    body = request.body
    shown = body.decode("utf-8", "replace") if isinstance(body, bytes | bytearray) else body
    return f"{request.url} {shown if isinstance(shown, str) else ''}"


def _moto() -> Any:
    """moto's handler, while a mock is in force."""
    models = sys.modules.get("moto.core.models")
    stubber = getattr(models, "botocore_stubber", None)
    return stubber if stubber is not None and stubber.enabled else None
