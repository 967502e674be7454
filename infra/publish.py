"""Publishes what infra makes: ``python -m infra.publish`` (``make asl``).

Writes these files, each the same for the same sources:

* ``workflows/asl/<machine>.asl.json``: each machine, with ``${Placeholder}`` for every resource;
* ``infra/templates/local.template.json``: the CloudFormation template of the stage ``local``,
  which the laptop deploys.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from aws_cdk import CfnElement

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
        machines: Definition of each machine with placeholders, by the machine's name.
    """

    template: dict[str, Any]
    machines: dict[str, dict[str, Any]]

    @property
    def machine(self) -> dict[str, Any]:
        """The machine ``onboard``."""
        return self.machines[onboard.NAME]


def synthesize(settings: StageSettings, outdir: Path) -> Synthesis:
    """Synthesizes a stage.

    Args:
        settings: The stage.
        outdir: Where CDK writes its cloud assembly.

    Raises:
        LimnerError: ``INTERNAL``, if a machine refers to something without a placeholder.
    """
    app, stack = build(settings, outdir)
    template: dict[str, Any] = app.synth().get_stack_by_name(stack.stack_name).template
    return Synthesis(template, {name: _machine(stack, name, template) for name in stack.machines})


def render(document: Mapping[str, Any]) -> str:
    """A published document as text."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Writes the published files."""
    with tempfile.TemporaryDirectory() as outdir:
        made = synthesize(laptop(), Path(outdir))
    published = {asl.path(name): machine for name, machine in made.machines.items()}
    for path, document in {**published, TEMPLATE: made.template}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(document), encoding="utf-8")


def _machine(stack: LimnerStack, name: str, template: Mapping[str, Any]) -> dict[str, Any]:
    """The definition of one of the stack's machines, with placeholders instead of references."""
    placeholders = {
        json.dumps(stack.resolve(value)): f"${{{name}}}"
        for name, value in stack.resources_of_machine.items()
    }
    placeholders[json.dumps({"Ref": "AWS::Partition"})] = "aws"
    resource = stack.machines[name].node.default_child
    machine = template["Resources"][stack.get_logical_id(cast("CfnElement", resource))]
    _, parts = machine["Properties"]["DefinitionString"]["Fn::Join"]
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
        elif (reference := json.dumps(part)) in placeholders:
            text += placeholders[reference]
        else:
            raise LimnerError("INTERNAL", f"{name} has no placeholder for {reference}.")
    return arrange(json.loads(text))


if __name__ == "__main__":
    main()
