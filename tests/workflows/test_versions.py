"""P11 on the laptop: who re-trains, activates and rolls back is served by what is live, only.

The machine, the tables, the bucket and the multi-model endpoint with its caches are real; training
and drawing are light. Each answer tells which request's artifact it was drawn with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest

from limner.client import Clients, Deployment, Limner
from limner.contracts import keys
from limner.contracts.onboarding import OnboardingInput
from limner.registry import Registry
from tests.support.endpoint import adapter_of
from tests.support.onboarding import Stack

MANY = 20


@dataclass
class Alice:
    """A user of the deployed stack, and what she was drawn with."""

    stack: Stack
    limner: Limner
    first: OnboardingInput
    drawn: list[tuple[int | None, int, int | None]] = field(default_factory=list)
    requests: dict[int, str] = field(default_factory=dict)
    stale: int = 0

    @property
    def live(self) -> int | None:
        return self.limner.status(self.first.user_id).live_version

    def draw(self) -> int:
        """Draws once, and notes what was live right before and right after."""
        before = self.live
        drawn = self.limner.generate(self.first.user_id, "x", steps=1)
        self.drawn.append((before, drawn.version, self.live))
        # The artifact's own word for it, and not the client's.
        self.stale += drawn.adapter_sha256 != adapter_of(self.requests[drawn.version])
        return drawn.version

    def draw_many(self) -> set[int]:
        return {self.draw() for _ in range(MANY)}

    def begin(self, version: int, **behaviour: Any) -> str:
        """Begins the training of a version; returns the execution's ARN."""
        user = self.first.user_id
        wish = self.first if version == 1 else self.stack.wish(user_id=user, retrain=True)
        self.requests[version] = wish.request_id
        self.stack.put_request(wish, **behaviour)
        return self.stack.start(wish)

    def train(self, version: int) -> None:
        """Trains a version, drawing all the while if something serves."""
        arn = self.begin(version, seconds=1)
        states = self.stack.laptop.states
        while states.describe_execution(executionArn=arn)["status"] == "RUNNING":
            if version > 1:
                self.draw()
        assert states.describe_execution(executionArn=arn)["status"] == "SUCCEEDED"

    def artifacts(self) -> dict[str, tuple[str, str]]:
        """Key, hash and time of each artifact that the endpoint may load."""
        listed = self.stack.laptop.s3.list_objects_v2(
            Bucket=self.stack.outputs["BucketName"], Prefix=f"models/{self.first.user_id}/"
        )
        return {o["Key"]: (o["ETag"], str(o["LastModified"])) for o in listed["Contents"]}


@pytest.fixture
def alice(stack: Stack) -> Alice:
    session = boto3.Session(
        aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    clients = Clients.of(session, endpoint_url=stack.laptop.laptop.endpoint_url)
    limner = Limner(clients, Deployment.from_outputs(stack.outputs))
    return Alice(stack, limner, stack.wish())


def test_what_serves_is_what_is_live(
    alice: Alice, record_property: Callable[[str, object], None]
) -> None:
    user, limner = alice.first.user_id, alice.limner
    alice.train(1)
    assert alice.draw_many() == {1}
    alice.train(2)
    assert alice.draw_many() == {2}

    limner.activate(user, "default", 1)
    assert alice.draw_many() == {1}
    assert limner.roll_back(user, from_version=2).live_version == 1, "it is left already"
    before = alice.artifacts()
    assert list(before) == [keys.artifact_key(user, "default", n) for n in (1, 2)]

    alice.train(3)
    assert alice.draw_many() == {3}, "the number after a roll-back is a new one"
    assert limner.roll_back(user).live_version == 1, "what served before, and not 2"
    assert alice.draw_many() == {1}
    limner.activate(user, "default", 2)
    assert limner.prefetch(user).version == 2
    assert alice.draw_many() == {2}

    after = alice.artifacts()
    assert before.items() <= after.items(), "no artifact was written over"
    assert list(after) == [keys.artifact_key(user, "default", n) for n in (1, 2, 3)]
    assert [v.version for v in limner.versions(user).versions] == [3, 2, 1]

    # What was read long ago, and what is not there, is refused by the laptop's DynamoDB, too.
    model = limner.versions(user).model
    registry = Registry(
        limner.clients.dynamodb, limner.deployment.models_table, limner.deployment.requests_table
    )
    assert not registry.activate(model.model_copy(update={"live_version": 1}), 3)
    assert not registry.activate(model, 9)
    assert alice.live == 2

    # Where a flip fell into the middle of a call, either is right.
    settled = [drawn for before, drawn, after in alice.drawn if before == after]
    wrong = [d for d in alice.drawn if d[1] not in (d[0], d[2])]
    assert wrong == []
    assert alice.stale == 0
    while_training = len(alice.drawn) - 6 * MANY
    assert while_training > 0
    record_property(
        "figure",
        f"P11  {len(alice.drawn)} images over 2 retrainings, 2 activations and a roll-back, "
        f"{while_training} of them while a version was trained: {len(settled)} between flips, "
        f"100 % by the live version, {len(wrong) + alice.stale} by another",
    )
