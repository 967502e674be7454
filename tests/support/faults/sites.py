"""Every place that writes, found by reading: the published machines, and the code's syntax trees.

Nothing here is a list by hand. A new state or a new call shows up in ``machine_sites`` or
``code_sites`` by itself, and the tests that demand a case for each site fail until it has one.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from tests.support.faults.world import ROOT, machine, machine_names

# boto3's methods that change something, by what they are called on AWS.
WRITES: Final = frozenset(
    {
        "batch_write_item",
        "copy_object",
        "create_training_job",
        "delete_item",
        "delete_object",
        "delete_objects",
        "put_events",
        "put_item",
        "put_object",
        "publish",
        "send_message",
        "start_execution",
        "stop_execution",
        "stop_training_job",
        "transact_write_items",
        "update_item",
        "upload_file",
        "upload_fileobj",
    }
)
READS: Final = frozenset({"getItem", "describeTrainingJob", "getObject", "listObjectsV2", "query"})
_TABLE: Final = "lambdas/shared/dynamo.py"
_CODE: Final = ("lambdas", "limner/client", "limner/registry.py")


@dataclass(frozen=True, slots=True)
class MachineSite:
    """A state that writes.

    Attributes:
        machine: Name of the machine.
        state: Name of the state, with the names of the Maps around it before it.
        integration: Service and action, such as ``dynamodb:updateItem``.
        body: The state.
    """

    machine: str
    state: str
    integration: str
    body: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.machine}:{self.state}"


@dataclass(frozen=True, slots=True, order=True)
class CodeSite:
    """A call in the code that writes.

    Attributes:
        module: Path of the module.
        function: Class and function around the call.
        method: What is called.
        line: Where it begins.
        end: Where it ends.
    """

    module: str
    function: str
    method: str
    line: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.module}:{self.line} {self.function} {self.method}"


def task_states(name: str) -> dict[str, Mapping[str, Any]]:
    """All Task states of a machine, those inside of Maps with the Map's name before theirs."""
    return {state: body for state, body in all_states(name).items() if body["Type"] == "Task"}


def all_states(name: str) -> dict[str, Mapping[str, Any]]:
    """All states of a machine, with values in place of the placeholders."""
    return dict(_states(machine(name).definition, ""))


def _states(flow: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for state, body in flow["States"].items():
        yield prefix + state, body
        for inner in (body.get("ItemProcessor"), body.get("Iterator"), *body.get("Branches", ())):
            if inner is not None:
                yield from _states(inner, f"{prefix}{state}/")


@cache
def machine_sites() -> tuple[MachineSite, ...]:
    """The states of all machines that write."""
    found = []
    for name in machine_names():
        for state, body in task_states(name).items():
            integration = body["Resource"].partition(":::")[2].removeprefix("aws-sdk:")
            if integration.partition(":")[2] not in READS:
                found.append(MachineSite(name, state, integration, body))
    return tuple(found)


def table_writes(site: MachineSite) -> list[Mapping[str, Any]]:
    """The members of a state that write the tables; none where it writes elsewhere."""
    parameters = site.body.get("Parameters", {})
    if site.integration == "dynamodb:transactWriteItems":
        return [next(iter(member.values())) for member in parameters["TransactItems"]]
    return [parameters] if site.integration.startswith("dynamodb:") else []


@cache
def code_sites() -> tuple[CodeSite, ...]:
    """The calls of functions and client that write."""
    wrappers = _wrappers()
    found: list[CodeSite] = []
    for place in _CODE:
        path = ROOT / place
        for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found += _calls_of(module, wrappers)
    return tuple(sorted(set(found)))


def _wrappers() -> frozenset[str]:
    """Methods of the functions' ``Table`` that write, directly or by another one of them."""
    tree = ast.parse((ROOT / _TABLE).read_text(encoding="utf-8"))
    (table,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Table")
    methods = [node for node in table.body if isinstance(node, ast.FunctionDef)]
    writing: set[str] = set()
    while True:
        more = {
            method.name
            for method in methods
            if any(_called(call) in WRITES | writing for call in _calls(method))
        }
        if more == writing:
            return frozenset(writing)
        writing = more


def _calls_of(module: Path, wrappers: frozenset[str]) -> Iterator[CodeSite]:
    place = module.relative_to(ROOT).as_posix()
    if place == _TABLE:
        return  # its callers are the sites
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for function, node in _functions(tree, ""):
        for call in _calls(node):
            method = _called(call)
            if method in WRITES or (method in wrappers and _is_table_call(method, call)):
                yield CodeSite(place, function, method, call.lineno, call.end_lineno or call.lineno)


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            yield f"{prefix}{child.name}", child


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    return (child for child in ast.walk(node) if isinstance(child, ast.Call))


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _is_table_call(method: str, call: ast.Call) -> bool:
    """Sets and dictionaries have an ``update``, too; a table's has a condition, or four parts."""
    keywords = {keyword.arg for keyword in call.keywords}
    if method in ("update", "change"):
        return bool(keywords & {"condition", "update"}) or len(call.args) >= 3
    return True


def calling_site() -> CodeSite | None:
    """The site of the code that is making a call right now, if it is one."""
    sites = _sites_by_function()
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        place = code.co_filename.removeprefix(f"{ROOT}/")
        function = code.co_qualname.partition(".<locals>")[0]
        for site in sites.get((place, function), ()):
            if site.line <= frame.f_lineno <= site.end:
                return site
        frame = frame.f_back  # type: ignore[assignment]
    return None


@cache
def _sites_by_function() -> dict[tuple[str, str], list[CodeSite]]:
    found: dict[tuple[str, str], list[CodeSite]] = {}
    for site in code_sites():
        found.setdefault((site.module, site.function), []).append(site)
    return found
