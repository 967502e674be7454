"""Conditional writes, and items as plain Python values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

Plain: TypeAlias = "str | int | bool | Mapping[str, Plain]"
Item: TypeAlias = dict[str, Any]


def to_attribute(value: Plain) -> dict[str, Any]:
    """A plain value in DynamoDB's wire form."""
    match value:
        case bool():
            return {"BOOL": value}
        case int():
            return {"N": str(value)}
        case str():
            return {"S": value}
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
        return {name: to_plain(value) for name, value in item.items()} if item else None

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
            condition: ConditionExpression, likewise.
            values: What the ``:name`` in both stand for.

        Returns:
            Whether the condition held and the item was written.
        """
        names = {f"#{name}": name for name in re.findall(r"#(\w+)", f"{update} {condition}")}
        try:
            self._client.update_item(
                TableName=self._name,
                Key=_attributes(key),
                UpdateExpression=update,
                ConditionExpression=condition,
                ExpressionAttributeNames=names,
                ExpressionAttributeValues=_attributes(values),
            )
        except ClientError as error:
            if error.response["Error"]["Code"] == "ConditionalCheckFailedException":
                return False
            raise
        return True


def _attributes(values: Mapping[str, Plain]) -> dict[str, Any]:
    return {name: to_attribute(value) for name, value in values.items()}
