"""Our Lambda functions, called in process: the real handlers, with the stack's environment."""

from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


class Functions:
    """All functions of ``lambdas/``; each is imported at its first call, as a cold start does.

    They read the environment of the process: ``moto_stack`` sets it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handlers: dict[str, Any] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        """Every event with its function, in order."""

    def call(self, name: str, event: dict[str, Any]) -> Any:
        """Calls a handler as Lambda does: JSON in, JSON out, its exceptions as they are."""
        self.events.append((name, event))
        answer = self.handler(name).handle(json.loads(json.dumps(event)), None)
        return json.loads(json.dumps(answer))

    def serve(self, name: str, handler: Any) -> None:
        """Puts something with a function ``handle`` in the place of a handler."""
        self._handlers[name] = handler

    def handler(self, name: str) -> ModuleType:
        """A private copy of a function's module: nobody else's settings or clients are in it."""
        with self._lock:
            return self._handlers.get(name) or self._cold_start(name)

    def _cold_start(self, name: str) -> ModuleType:
        path = ROOT / "lambdas" / name / "handler.py"
        spec = importlib.util.spec_from_file_location(f"engines_{name}_handler", path)
        assert spec is not None and spec.loader is not None, path
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._handlers[name] = module
        return module
