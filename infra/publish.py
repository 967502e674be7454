"""Publishes what infra makes: ``python -m infra.publish`` (``make asl``).

Writes two files, each the same for the same sources:

* ``workflows/asl/onboard.asl.json``: the machine, with ``${Placeholder}`` for every resource;
* ``infra/templates/local.template.json``: the CloudFormation template of the stage ``local``,
  which the laptop deploys.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.app import build
from infra.settings import StageSettings, laptop
from infra.stack import LimnerStack
from limner.contracts.errors import LimnerError
from workflows import asl, onboard

TEMPLATE: Final = Path(__file__).parent / "templates" / "local.template.json"

# The order in which a person reads a state: what it is, what it does, what comes of it, and what
# happens if it does not work.
_FIELDS: Final = (
    *("Comment", "QueryLanguage", "StartAt", "TimeoutSeconds", "States"),
    *("Type", "Resource", "Parameters", "Result", "Choices", "Default", "Seconds"),
    *("ResultSelector", "ResultPath", "Next", "End"),
    *("Error", "ErrorPath", "Cause", "CausePath", "Retry", "Catch"),
)


@dataclass(frozen=True)
class Synthesis:
    """What one synthesis has made.

    Attributes:
        template: The stack's CloudFormation template.
        machine: The machine's definition with placeholders.
    """

    template: dict[str, Any]
    machine: dict[str, Any]


def synthesize(settings: StageSettings, outdir: Path) -> Synthesis:
    """Synthesizes a stage.

    Args:
        settings: The stage.
        outdir: Where CDK writes its cloud assembly.

    Raises:
        LimnerError: ``INTERNAL``, if the machine refers to something without a placeholder.
    """
    app, stack = build(settings, outdir)
    template: dict[str, Any] = app.synth().get_stack_by_name(stack.stack_name).template
    return Synthesis(template, _machine(stack, template))


def render(document: Mapping[str, Any]) -> str:
    """A published document as text."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Writes the published files."""
    with tempfile.TemporaryDirectory() as outdir:
        made = synthesize(laptop(), Path(outdir))
    for path, document in (
        (asl.path(onboard.NAME), made.machine),
        (TEMPLATE, made.template),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(document), encoding="utf-8")


def _machine(stack: LimnerStack, template: Mapping[str, Any]) -> dict[str, Any]:
    """The definition of the stack's machine, with placeholders instead of references."""
    placeholders = {
        json.dumps(stack.resolve(value)): f"${{{name}}}"
        for name, value in stack.resources_of_machine.items()
    }
    placeholders[json.dumps({"Ref": "AWS::Partition"})] = "aws"
    machine = next(
        resource
        for resource in template["Resources"].values()
        if resource["Type"] == "AWS::StepFunctions::StateMachine"
    )
    _, parts = machine["Properties"]["DefinitionString"]["Fn::Join"]
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
        elif (reference := json.dumps(part)) in placeholders:
            text += placeholders[reference]
        else:
            raise LimnerError("INTERNAL", f"The machine has no placeholder for {reference}.")
    definition = json.loads(text)
    definition["States"] = {
        name: _ordered(definition["States"][name]) for name in _reading_order(definition)
    }
    return _ordered(definition)


def _ordered(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in sorted(fields, key=_FIELDS.index)}


def _reading_order(definition: Mapping[str, Any]) -> list[str]:
    """The states in the order of the picture: ways forward first, what a Catch leads to last."""
    states = definition["States"]
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        order.append(name)
        state = states[name]
        ways = [choice["Next"] for choice in state.get("Choices", ())]
        for way in (*ways, state.get("Default"), state.get("Next")):
            if way:
                visit(way)

    visit(definition["StartAt"])
    for name in order:  # grows as it goes
        for catcher in states[name].get("Catch", ()):
            visit(catcher["Next"])
    return order


if __name__ == "__main__":
    main()
