"""An inference image for tests: the real multi-model container contract, no torch.

Holds at most ``TEST_MAX_MODELS`` models (2 by default) and answers 507 for one more. An invocation
answers with the loaded manifest and what the platform sent; the request can ask for trouble:
``{"status": 500}``, ``{"exit": true}``, ``{"sleep_s": 1}``, ``{"oom": true}`` (507 until a
model has been unloaded). A manifest with ``"refuse": "text"`` does not load (400), one with
``"load_s": 2`` loads slowly. Prompts work as in the real container: the body may be a
GenerateRequest, and the answer then is a GenerateResponse with one PNG of two pixels; its
``adapter_sha256`` tells whose artifact it was (``adapter_of``).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar


def two_pixel_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\x00\xff\x80\x00\x00\x80\xff")
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def adapter_of(request_id: str) -> str:
    """What an answer drawn with the artifact of a request says of its adapter."""
    return hashlib.sha256(request_id.encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    models: ClassVar[dict[str, dict]] = {}
    loads = 0
    unloads = 0
    max_models = int(os.environ.get("TEST_MAX_MODELS", "2"))

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> dict:
        data = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        return json.loads(data) if data else {}

    def name(self) -> str:
        return self.path.split("/")[2]

    def do_GET(self) -> None:
        if self.path == "/ping":
            self.answer(200, {})
        elif self.path == "/models":
            self.answer(200, {"models": [{"modelName": name} for name in self.models]})
        elif self.name() in self.models:
            self.answer(200, {"modelName": self.name()})
        else:
            self.answer(404, {"error": {"code": "MODEL_NOT_LOADED"}})

    def do_DELETE(self) -> None:
        with self.lock:
            found = self.models.pop(self.name(), None)
            Handler.unloads += found is not None
        self.answer(200 if found is not None else 404, {})

    def do_POST(self) -> None:
        body = self.body()
        if self.path == "/models":
            self.load(body["model_name"], Path(body["url"]))
        elif self.name() not in self.models:
            self.answer(404, {"error": {"code": "MODEL_NOT_LOADED"}})
        else:
            self.invoke(body)

    def load(self, name: str, folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        if "refuse" in manifest:
            self.answer(400, {"error": {"code": "ARTIFACT_INVALID", "message": manifest["refuse"]}})
            return
        time.sleep(float(manifest.get("load_s", 0)))
        with self.lock:
            if name in self.models:
                self.answer(409, {"error": {"code": "MODEL_ALREADY_LOADED"}})
                return
            if len(self.models) >= self.max_models:
                self.answer(507, {"error": {"code": "OUT_OF_MEMORY"}})
                return
            self.models[name] = manifest
            Handler.loads += 1
        self.answer(200, {})

    def invoke(self, body: dict) -> None:
        if body.get("exit"):
            os._exit(9)
        if body.get("oom") and self.unloads == 0:
            self.answer(507, {"error": {"code": "OUT_OF_MEMORY"}})
            return
        if "status" in body:
            self.answer(body["status"], {"error": {"code": "TEST", "message": "on demand"}})
            return
        time.sleep(float(body.get("sleep_s", 0)))
        manifest = self.models[self.name()]
        if "prompt" in body:
            image = {
                "png_base64": base64.b64encode(two_pixel_png()).decode(),
                "seed": body.get("seed", 0),
            }
            self.answer(
                200,
                {
                    "schema_version": 1,
                    "images": [image] * body.get("images", 1),
                    "prompt": body["prompt"],
                    "base_id": "tiny-1",
                    "adapter_sha256": adapter_of(manifest.get("request_id", "")),
                    "denoise_ms": 1.0,
                },
            )
            return
        self.answer(
            200,
            {
                "manifest": manifest,
                "target": self.headers.get("X-Amzn-SageMaker-Target-Model"),
                "model_name": self.name(),
                "loads": self.loads,
                "unloads": self.unloads,
                "pid": os.getpid(),
                "multi": os.environ.get("SAGEMAKER_MULTI_MODEL"),
            },
        )


if __name__ == "__main__":
    host = os.environ["LIMNER_BIND_HOST"]
    server = ThreadingHTTPServer((host, int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler)
    server.serve_forever()
