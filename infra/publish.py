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
from infra.reading import arrange
from infra.settings import StageSettings, laptop
from infra.stack import LimnerStack
from limner.contracts.errors import LimnerError
from workflows import asl, onboard

TEMPLATE: Final = Path(__file__).parent / "templates" / "local.template.json"


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
    return arrange(json.loads(text))


if __name__ == "__main__":
    main()
