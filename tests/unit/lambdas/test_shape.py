"""What holds for all functions: small handlers, no foreign packages, settings that fail early."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lambdas
from lambdas.shared.settings import RecordFailureSettings, SmokeTestSettings
from limner.contracts.errors import LimnerError

FOLDER = Path(lambdas.__file__).parent
HANDLERS = sorted(FOLDER.glob("*/handler.py"))


@pytest.mark.parametrize("path", HANDLERS, ids=lambda path: path.parent.name)
def test_a_handler_parses_calls_and_formats(path: Path) -> None:
    (handle,) = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "handle"
    ]
    assert (handle.end_lineno or 0) - handle.lineno < 40


@pytest.mark.parametrize("path", HANDLERS, ids=lambda path: path.parent.name)
def test_a_function_needs_nothing_that_lambda_does_not_bring(path: Path) -> None:
    # The import itself, in a Python that refuses everything but boto3 and its own needs.
    program = f"""
import sys
class OnlyBoto3:
    allowed = {{"boto3", "botocore", "s3transfer", "jmespath", "dateutil", "urllib3", "six"}}
    ours = {{"lambdas", "limner"}}
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in self.allowed | self.ours | sys.stdlib_module_names:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, OnlyBoto3())
import lambdas.{path.parent.name}.logic
import lambdas.{path.parent.name}.handler
assert "pydantic" not in sys.modules
"""
    # Every variable that any function reads; a whole number will do for each of them.
    names = re.findall(r'"([A-Z][A-Z_]+)"', (FOLDER / "shared" / "settings.py").read_text())
    environment = {**dict.fromkeys(names, "40"), "AWS_DEFAULT_REGION": "us-east-1"}
    environment["MAX_INSTANCES"] = "80"  # room for batches and workers
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=FOLDER.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_logic_knows_no_aws_client() -> None:
    for path in (*FOLDER.glob("*/logic.py"), *FOLDER.glob("*/png.py")):
        imported = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not imported & {"boto3", "botocore"}, path


@pytest.mark.parametrize("settings", [SmokeTestSettings, RecordFailureSettings])
def test_a_missing_variable_fails_the_cold_start(
    settings: type[SmokeTestSettings] | type[RecordFailureSettings],
) -> None:
    with pytest.raises(LimnerError, match=r"INTERNAL: The function's environment lacks [A-Z_]+\."):
        settings.from_env({})
