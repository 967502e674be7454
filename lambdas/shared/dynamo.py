"""Conditional writes, and items as plain Python values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# A tuple is a list, a frozenset a set of texts, which DynamoDB does not keep when it is empty.
Plain: TypeAlias = (
    "str | int | float | bool | tuple[Plain, ...] | frozenset[str] | Mapping[str, Plain]"
)
Item: TypeAlias = dict[str, Any]


def to_attribute(value: Plain) -> dict[str, Any]:
    """A plain value in DynamoDB's wire form."""
    match value:
        case bool():
            return {"BOOL": value}
        case int() | float():
            return {"N": str(value)}
        case str():
            return {"S": value}
        case tuple():
            return {"L": [to_attribute(part) for part in value]}
        case frozenset():
            return {"SS": sorted(value)}
        case _:
            return {"M": {name: to_attribute(part) for name, part in value.items()}}


def to_plain(attribute: Mapping[str, Any]) -> Any:  # noqa: ANN401 - whatever was written
    """A value in DynamoDB's wire form as a plain one; kinds that we do not write stay as is."""
    ((kind, value),) = attribute.items()
    match kind:
        case "N":
            number = Decimal(value)
            return int(number) if number == number.to_integral_value() else float(number)
        case "M":
            return {name: to_plain(part) for name, part in value.items()}
        case "L":
            return tuple(to_plain(part) for part in value)
        case "SS":
            return frozenset(value)
        case "NULL":
            return None
        case _:
            return value


class Table:
    """One table.

    Args:
        client: A DynamoDB client.
        name: The table's name.
    """

    def __init__(self, client: DynamoDBClient, name: str) -> None:
        self._client = client
        self._name = name

    def read(self, key: Mapping[str, Plain]) -> Item | None:
        """Reads an item, consistently."""
        answer = self._client.get_item(
            TableName=self._name, Key=_attributes(key), ConsistentRead=True
        )
        item = answer.get("Item")
        return _plain(item) if item else None

    def update(
        self,
        key: Mapping[str, Plain],
        update: str,
        condition: str,
        values: Mapping[str, Plain],
    ) -> bool:
        """Updates an item if the condition holds.

        Args:
            key: Partition and sort key.
            update: UpdateExpression; attribute names are written ``#name``.
            condition: ConditionExpression, likewise; empty for none.
            values: What the ``:name`` in both stand for.

        Returns:
            Whether the condition held and the item was written.
        """
        return self.change(key, update, condition, values) is not None

    def change(
        self,
        key: Mapping[str, Plain],
        update: str,
        condition: str,
        values: Mapping[str, Plain],
    ) -> Item | None:
        """Does what ``update`` does.

        Returns:
            The item as it is now; None if the condition did not hold.
        """
        try:
            answer = self._client.update_item(
                **self._update(key, update, condition, values), ReturnValues="ALL_NEW"
            )
        except ClientError as error:
            if error.response["Error"]["Code"] == "ConditionalCheckFailedException":
                return None
            raise
        return _plain(answer["Attributes"])

    def member(
        self,
        key: Mapping[str, Plain],
        update: str,
        condition: str,
        values: Mapping[str, Plain],
    ) -> dict[str, Any]:
        """The same update as one of the members of a ``transact``."""
        return {"Update": self._update(key, update, condition, values)}

    def transact(self, members: Sequence[Mapping[str, Any]]) -> Sequence[bool] | None:
        """Writes all members, or none of them.

        Returns:
            None if all was written; else of each member whether its condition held.
        """
        try:
            self._client.transact_write_items(TransactItems=cast("Any", list(members)))
        except ClientError as error:
            reasons = cast("dict[str, Any]", error.response).get("CancellationReasons", [])
            codes = [reason.get("Code", "None") for reason in reasons]
            # A conflict with somebody else's transaction passes: the caller may come again.
            if not codes or set(codes) - {"None", "ConditionalCheckFailed"}:
                raise
            return [code == "None" for code in codes]
        return None

    def page(
        self,
        index: str,
        condition: str,
        values: Mapping[str, Plain],
        *,
        where: str = "",
        limit: int | None = None,
        start: Mapping[str, Plain] | None = None,
        newest_first: bool = False,
    ) -> tuple[list[Item], Item | None]:
        """One page of an index, in the order of its sort key. Eventually consistent.

        Args:
            index: The index.
            condition: KeyConditionExpression; attribute names are written ``#name``.
            values: What the ``:name`` in both expressions stand for.
            where: FilterExpression; what it filters is read and paid for, but not sent.
            limit: How many items to look at; None for as many as fit into 1 MB.
            start: Where the page before has ended.
            newest_first: Whether to go against the order of the sort key.

        Returns:
            The items, and where the page has ended; None behind the last one.
        """
        options: dict[str, Any] = {
            "TableName": self._name,
            "IndexName": index,
            "KeyConditionExpression": condition,
            "ExpressionAttributeNames": _names(condition, where),
            "ExpressionAttributeValues": _attributes(values),
        }
        if where:
            options["FilterExpression"] = where
        if limit:
            options["Limit"] = limit
        if newest_first:
            options["ScanIndexForward"] = False
        if start:
            options["ExclusiveStartKey"] = _attributes(start)
        answer = self._client.query(**options)
        last = answer.get("LastEvaluatedKey")
        return [_plain(item) for item in answer["Items"]], _plain(last) if last else None

    def _update(
        self,
        key: Mapping[str, Plain],
        update: str,
        condition: str,
        values: Mapping[str, Plain],
    ) -> dict[str, Any]:
        options: dict[str, Any] = {
            "TableName": self._name,
            "Key": _attributes(key),
            "UpdateExpression": update,
        }
        # DynamoDB refuses each of them when it is empty.
        if condition:
            options["ConditionExpression"] = condition
        if names := _names(update, condition):
            options["ExpressionAttributeNames"] = names
        if values:
            options["ExpressionAttributeValues"] = _attributes(values)
        return options


def _names(*expressions: str) -> dict[str, str]:
    return {f"#{name}": name for name in re.findall(r"#(\w+)", " ".join(expressions))}


def _plain(item: Mapping[str, Any]) -> Item:
    return {name: to_plain(value) for name, value in item.items()}


def _attributes(values: Mapping[str, Plain]) -> dict[str, Any]:
    return {name: to_attribute(value) for name, value in values.items()}
