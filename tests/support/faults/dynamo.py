"""Tables in memory, behind the methods of a boto3 DynamoDB client.

The Lambda functions' and the client's own code runs on it, and the published machines do, some
hundred times faster than on moto: a call is a dictionary look-up and two compiled expressions.
Errors are botocore's ``ClientError`` in DynamoDB's words. Indexes are always consistent here, as
DynamoDB's global ones are not; tests that need a stale one say so (``stale_indexes``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from botocore.exceptions import ClientError

from tests.support.faults import expressions
from tests.support.faults.expressions import InvalidExpressionError, Item

Key: TypeAlias = tuple[str, ...]
Observer: TypeAlias = Callable[["Commit"], None]

_LIMIT: Final = 100


@dataclass(frozen=True, slots=True)
class Commit:
    """One item that a call has changed.

    Attributes:
        table: Name of the table.
        key: The item's key.
        old: The item before; None if it was not there.
        new: The item after; None if it is gone.
        call: The members of the call that wrote it.
        writer: ``Memory.writer`` at that moment: whoever the test says is writing.
    """

    table: str
    key: Key
    old: Item | None
    new: Item | None
    call: Mapping[str, Any]
    writer: object


@dataclass(frozen=True)
class Schema:
    """Key of a table, and the keys of its indexes by their names."""

    key: tuple[str, ...]
    indexes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


SCHEMAS: Final[Mapping[str, Schema]] = {
    "models": Schema(("user_id", "model_row")),
    "requests": Schema(
        ("request_id",),
        {
            "by_user": ("user_id", "created_at"),
            "queue": ("queue", "queued_at"),
            "open": ("open", "updated_at"),
        },
    ),
}


class Memory:
    """DynamoDB in memory. Not safe for threads: schedules are made of turns, not of threads.

    Args:
        schemas: The tables by name.
    """

    def __init__(self, schemas: Mapping[str, Schema] = SCHEMAS) -> None:
        self.tables: dict[str, dict[Key, Item]] = {name: {} for name in schemas}
        self.schemas = schemas
        self.observers: list[Observer] = []
        self.writer: object = None
        self.meta = None
        self._tokens: dict[str, object] = {}

    # -- What boto3 offers ------------------------------------------------------------------------

    def get_item(self, **call: Any) -> dict[str, Any]:
        item = self.tables[call["TableName"]].get(self._key(call["TableName"], call["Key"]))
        return {} if item is None else {"Item": copy.copy(item)}

    def batch_get_item(self, **call: Any) -> dict[str, Any]:
        found: dict[str, list[Item]] = {}
        for table, wanted in call["RequestItems"].items():
            answers = (self.get_item(TableName=table, Key=key) for key in wanted["Keys"])
            found[table] = [answer["Item"] for answer in answers if answer]
        return {"Responses": found, "UnprocessedKeys": {}}

    def put_item(self, **call: Any) -> dict[str, Any]:
        self._commit([self._prepare("Put", call)])
        return {}

    def delete_item(self, **call: Any) -> dict[str, Any]:
        self._commit([self._prepare("Delete", call)])
        return {}

    def update_item(self, **call: Any) -> dict[str, Any]:
        commit = self._prepare("Update", call)
        self._commit([commit])
        wanted = {"ALL_NEW": commit.new, "UPDATED_NEW": commit.new, "ALL_OLD": commit.old}
        attributes = wanted.get(call.get("ReturnValues", ""))
        return {} if attributes is None else {"Attributes": copy.copy(attributes)}

    def transact_write_items(self, **call: Any) -> dict[str, Any]:
        token = call.get("ClientRequestToken")
        if token is not None and token in self._tokens:
            return {}  # the same token within ten minutes is the same success
        commits, reasons = [], []
        for action in call["TransactItems"]:
            ((kind, member),) = action.items()
            try:
                commits.append(self._prepare(kind, member))
                reasons.append({"Code": "None"})
            except ClientError as error:
                reasons.append({"Code": error.response["Error"]["Code"].removesuffix("Exception")})
        if len({(commit.table, commit.key) for commit in commits}) < len(commits):
            raise _error("TransactWriteItems", "ValidationException", "one item, two actions")
        if any(reason["Code"] != "None" for reason in reasons):
            codes = ", ".join(reason["Code"] for reason in reasons)
            raise _error(
                "TransactWriteItems",
                "TransactionCanceledException",
                "Transaction cancelled, please refer cancellation reasons for specific reasons "
                f"[{codes}]",
                CancellationReasons=reasons,
            )
        self._commit(commits)
        if token is not None:
            self._tokens[token] = True
        return {}

    def query(self, **call: Any) -> dict[str, Any]:
        table = call["TableName"]
        key = self._index(table, call.get("IndexName"))
        names, values = _names(call), _values(call)
        matches = expressions.condition(call["KeyConditionExpression"])
        found = [
            item
            for item in self.tables[table].values()
            if all(part in item for part in key) and matches(item, names, values)
        ]
        found.sort(key=lambda item: next(iter(item[key[-1]].values())))
        if not call.get("ScanIndexForward", True):
            found.reverse()
        return self._page(table, call, found)

    def scan(self, **call: Any) -> dict[str, Any]:
        table = call["TableName"]
        key = self._index(table, call.get("IndexName"))
        items = self.tables[table].values()
        return self._page(table, call, [i for i in items if all(part in i for part in key)])

    def get_paginator(self, operation: str) -> _Paginator:
        return _Paginator(getattr(self, operation))

    # -- What tests want --------------------------------------------------------------------------

    def item(self, table: str, *key: str) -> Item | None:
        """An item in wire form."""
        return self.tables[table].get(key)

    # -- Inside -----------------------------------------------------------------------------------

    def _key(self, table: str, item: Mapping[str, Any]) -> Key:
        return tuple(next(iter(item[name].values())) for name in self.schemas[table].key)

    def _index(self, table: str, index: str | None) -> tuple[str, ...]:
        schema = self.schemas[table]
        return schema.key if index is None else schema.indexes[index]

    def _prepare(self, kind: str, call: Mapping[str, Any]) -> Commit:
        table = call["TableName"]
        operation = {"Put": "PutItem", "Delete": "DeleteItem"}.get(kind, "UpdateItem")
        key = self._key(table, call["Item"] if kind == "Put" else call["Key"])
        old = self.tables[table].get(key)
        names, values = _names(call), _values(call)
        wanted = call.get("ConditionExpression")
        if wanted and not expressions.condition(wanted)(old or {}, names, values):
            shown = {} if old is None else {"Item": copy.copy(old)}
            if call.get("ReturnValuesOnConditionCheckFailure") != "ALL_OLD":
                shown = {}
            raise _error(
                operation,
                "ConditionalCheckFailedException",
                "The conditional request failed",
                **shown,
            )
        match kind:
            case "Put":
                new: Item | None = copy.copy(call["Item"])
            case "Delete":
                new = None
            case "ConditionCheck":
                new = old
            case _:
                base = dict(call["Key"]) if old is None else old
                text = call.get("UpdateExpression")
                try:
                    new = expressions.update(text)(base, names, values) if text else base
                except InvalidExpressionError as error:
                    raise _error(operation, "ValidationException", str(error)) from error
        return Commit(table, key, old, new, call, self.writer)

    def _commit(self, commits: Sequence[Commit]) -> None:
        for commit in commits:
            if commit.new is None:
                self.tables[commit.table].pop(commit.key, None)
            else:
                self.tables[commit.table][commit.key] = commit.new
        for commit in commits:
            for observer in self.observers:
                observer(commit)

    def _page(self, table: str, call: Mapping[str, Any], found: list[Item]) -> dict[str, Any]:
        limit = int(call.get("Limit", _LIMIT))
        start = call.get("ExclusiveStartKey")
        keys = [self._key(table, item) for item in found]
        begin = keys.index(self._key(table, start)) + 1 if start else 0
        page, more = found[begin : begin + limit], len(found) > begin + limit
        wanted = call.get("FilterExpression")
        if wanted:
            names, values = _names(call), _values(call)
            page_kept = [i for i in page if expressions.condition(wanted)(i, names, values)]
        else:
            page_kept = page
        answer: dict[str, Any] = {
            "Items": [copy.copy(item) for item in page_kept],
            "Count": len(page_kept),
            "ScannedCount": len(page),
        }
        if more:
            last = page[-1]
            index = self._index(table, call.get("IndexName"))
            parts = {*self.schemas[table].key, *index}
            answer["LastEvaluatedKey"] = {name: last[name] for name in parts}
        return answer


class _Paginator:
    def __init__(self, method: Callable[..., dict[str, Any]]) -> None:
        self._method = method

    def paginate(self, **call: Any) -> Iterator[dict[str, Any]]:
        settings = call.pop("PaginationConfig", {})
        if "PageSize" in settings:
            call["Limit"] = settings["PageSize"]
        while True:
            page = self._method(**call)
            yield page
            if "LastEvaluatedKey" not in page:
                return
            call["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def _names(call: Mapping[str, Any]) -> Mapping[str, str]:
    return call.get("ExpressionAttributeNames") or {}


def _values(call: Mapping[str, Any]) -> Mapping[str, Any]:
    return call.get("ExpressionAttributeValues") or {}


def _error(operation: str, code: str, message: str, **more: Any) -> ClientError:
    return ClientError(
        {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": 400},  # type: ignore[typeddict-item]
            **more,
        },
        operation,
    )
