"""Generated calls of a container, sound and hostile ones mixed, and what the container answers.

They are written to a socket byte by byte: an HTTP client would refuse to send half of them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.contracts import triton as wire
from limner.contracts.errors import LimnerError
from limner.contracts.generation import MAX_BODY_BYTES, TARGET_HEADER

PATIENCE_S = 60
MAX_HEAD_BYTES = 8_192
# JSON of 150,000 levels ends Triton 2.51 (docs/serving-triton.md).
DEPTH = 10_000
_BINARY_TYPE = wire.RAW_TYPE.removesuffix("0")

_ODD: Sequence[object] = (
    *(None, True, -1, 0, 2**31, 2**64, 1e308, "", "x", "\0\ud7ff", [], {}, [1], "9", 0.5),
    *("OOM MemoryError", "{0}{x!r}", "%s%n", "\u202e\U0001f600", "../../etc", "x" * 5_000),
)
_FIELDS: dict[str, Sequence[object]] = {
    "negative_prompt": ("", "y" * 400, "y" * 401),
    "steps": (1, 2, 101),
    "guidance": (0, 1, 1.0001, 20, 20.1),
    "seed": (0, 2**31 - 1, 2**31),
    "images": (1, 2, 9),
    "height": (24, 32, 33, 64, 1032),
    "width": (32, 40, 64, 2**40),
    "format": ("png", "jpeg", "webp", "gif"),
    "unknown": (1,),
}
_NAMES: Sequence[bytes] = (
    *(b"", b".", b"..", b"%2e%2e%2fbeta", b"%00", b"%", b"%zz", b"%ff", b"\xff\xfe", b"a%0d%0ab"),
    *(b"absent", b"OOM", b"invoke", b"models", b"x" * 129, b"x" * 4_000, b"*", b"{model}", b"~"),
    *(b"a;b=c", b"%F0%9F%98%80", b"-", b"alpha%20", b"ALPHA", b"v000001.tar.gz", b"a\\b", b"a//b"),
)
_QUERIES: Sequence[bytes] = (
    *(b"limit=1", b"limit=0", b"limit=-1", b"limit=1001", b"limit=NaN", b"limit=1e2", b"limit="),
    *(b"limit=" + b"9" * 5_000, b"limit=1&limit=2", b"limit=%00", b"limit=%D9%A1", b"limit[]=1"),
    *(b"next_page_token=alpha", b"next_page_token=%ff", b"next_page_token=" + b"z" * 5_000),
    *(b"limit=1&next_page_token=beta", b"&&&", b"=", b"?", b"%", b"x" * 5_000, b"a=%F0%9F%98%80"),
)
_ACCEPTS: Sequence[bytes] = (
    *(b"*/*", b"application/json", b"image/png", b"image/webp;q=1", b"image/jpeg, */*", b"\xff"),
    *(b";;", b"", b"text/event-stream", b"text/event-stream;x", b"image/gif", b"a" * 5_000),
)
_TYPES: Sequence[bytes] = (
    *(b"application/json", b"text/plain", b"", b";", b"\xff", b"a" * 5_000, wire.RAW_TYPE.encode()),
    *(
        f"{_BINARY_TYPE}{size}".encode()
        for size in (1, 20, -1, 2**31, 2**64, "", "x", "0x1", "1.5")
    ),
    *(b"multipart/form-data", b"application/x-www-form-urlencoded"),
)
_EXTRA: Sequence[tuple[bytes, bytes]] = (
    (b"Content-Encoding", b"gzip"),
    (b"Content-Encoding", b"x"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"Inference-Header-Content-Length", b"-1"),
    (b"Transfer-Encoding", b"gzip"),
    (b"Upgrade", b"websocket"),
    (b"Expect", b"100-continue"),
    (b"Range", b"bytes=0-1"),
    (b"X-Long", b"y" * 8_000),
    (b"X-HTTP-Method-Override", b"DELETE"),
    (b"Cookie", b"\x80\x81"),
)
_METHODS = (b"GET", b"HEAD", b"PUT", b"PATCH", b"OPTIONS", b"TRACE", b"POST", b"DELETE")
_STRAY = (b"/", b"/ping", b"/ping?x=%ff", b"/models/", b"//models", b"/invocations", b"/v2", b"*")
_PROMPTS: Sequence[object] = (
    *("a {token}", " x ", "x" * 400, "x" * 401, "{0}{x!r}", "\u202e\U0001f600", "%s", "", "\0"),
    *("OOM MemoryError CUDA out of memory", "\ud7ff", None, 1),
)
_BODIES: Sequence[bytes] = (
    *(b"", b"[" * DEPTH, b'{"prompt":' * DEPTH, b"[" * DEPTH + b"]" * DEPTH, b"\xff\xfe", b"null"),
    *(b'{"prompt": "\\ud800"}', b'{"prompt": "x", "seed": ' + b"9" * 10_000 + b"}", b"\0" * 100),
    *(b'{"prompt": "x", "prompt": "y", "steps": 1}', b'{"prompt": "x", "guidance": NaN}'),
    b'{"prompt": "' + b"x" * MAX_BODY_BYTES + b'"}',
)
_HEADER_KEYS = ("parameters", "id", "name", "shape", "datatype", "data", "inputs", "outputs", "x")
_HEADER_VALUES: Sequence[object] = (
    *({"accept": 1}, {"accept": ["x"]}, {"accept": "\0\ud7ff"}, {"accept": "x" * 100_000}),
    *({"binary_data_size": size} for size in (-1, 0, 1, 10**9, 2**63, "x")),
    *({"shared_memory_region": "x", "shared_memory_byte_size": 1}, {"classification": 1}),
    *({"priority": -1}, {"timeout": 1}, {"sequence_id": 1, "sequence_start": True}),
    *({"folder": "/etc", "target": "x"}, {"binary_data": False}, {"triton_x": 1}, {"\0": "\0"}),
    *([-1], [2**62, 4], [2**63], [0], [{}], [[[[1]]]], "BYTES", "FP32", "other"),
)


@dataclass(frozen=True)
class Call:
    """One call, as bytes."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    @property
    def is_fit_to_answer(self) -> bool:
        """Whether its first line has a path, and its head has a usual size."""
        return self.target.startswith(b"/") and len(self.content) - len(self.body) < MAX_HEAD_BYTES

    @property
    def content(self) -> bytes:
        head = [self.method + b" " + self.target + b" HTTP/1.1", b"Host: x", b"Connection: close"]
        head += [name + b": " + value for name, value in self.headers]
        head += [b"Content-Length: %d" % len(self.body), b"", self.body]
        return b"\r\n".join(head)


@dataclass(frozen=True)
class Reply:
    """What came back; status 0 where the connection was closed without an answer."""

    status: int
    content: bytes = b""

    @property
    def meant(self) -> int:
        """The status that our own error has: Triton says 400 where the other shell says 500.

        A stream has begun with 200 before its error is known.
        """
        text = self.content.decode(errors="replace").rpartition("event: error\ndata: ")[2]
        try:
            return LimnerError(json.loads(wire.own_words(text))["error"]["code"]).spec.http_status
        except (ValueError, TypeError, KeyError):
            return self.status


def ask(port: int, call: Call) -> Reply:
    """Sends one call on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        # Who refuses a body may close before all of it was sent, and have answered.
        with contextlib.suppress(ConnectionError):
            connection.sendall(call.content)
        answer = http.client.HTTPResponse(connection, method=call.method.decode())
        try:
            answer.begin()
            return Reply(answer.status, answer.read())
        except (ConnectionError, http.client.HTTPException):
            return Reply(0)


class Caller:
    """Makes calls by chance.

    Args:
        draw: The source of chance.
        loaded: A model that is loaded; nothing unloads it.
        models: Other sound models, by name, with what the platform gives as their urls.
        target: What the platform calls a model outside.
        loads_any_body: Whether ``POST /models`` may have a body other than an object of strings.
    """

    def __init__(
        self,
        draw: random.Random,
        loaded: str,
        models: dict[str, Path],
        target: Callable[[str], str],
        *,
        loads_any_body: bool,
    ) -> None:
        self._draw = draw
        self._loaded = loaded
        self._models = models
        self._target = target
        self._loads_any_body = loads_any_body

    def call(self) -> Call:
        makers = (self.load, self.list, self.get, self.unload, self.invoke, self.stray)
        return self._draw.choices(makers, (3, 2, 2, 1, 10, 1))[0]()

    def load(self) -> Call:
        name = self._draw.choice([*self._models, self._loaded])
        body: object = {"model_name": name, "url": str(self._models.get(name, "/"))}
        if self._seldom(0.8):
            body = {"model_name": self._text(), "url": self._text()}
            name = self._draw.choice(["OOM", "absent", "../../x", "x" * 4_000])
        content = _json(body)
        if self._loads_any_body and self._seldom(0.5):
            content = self._damaged(_json(self._draw.choice([body, *_ODD])))
        return self._call(b"POST", b"/models", name, content)

    def list(self) -> Call:
        return self._call(b"GET", b"/models?" + self._draw.choice(_QUERIES))

    def get(self) -> Call:
        return self._call(b"GET", b"/models/" + self._name(0.3), self._loaded)

    def unload(self) -> Call:
        # Mostly of none: Triton takes 2 s for each.
        others = [name.encode() for name in self._models]
        name = self._draw.choice(others if self._seldom(0.05) else _NAMES)
        return self._call(b"DELETE", b"/models/" + name, name.decode("latin1"))

    def invoke(self) -> Call:
        path = b"/models/" + self._name(0.8) + b"/invoke"
        if self._seldom(0.2):
            path += b"?" + self._draw.choice(_QUERIES)
        body = self._generation()
        kind = self._draw.random()
        if kind < 0.3:
            body, content_type = self._with_header(body)
        elif kind < 0.5:
            content_type = self._draw.choice(_TYPES)
        else:
            content_type = wire.RAW_TYPE.encode()
        headers = [(b"Content-Type", content_type)]
        headers += [(b"Accept", self._draw.choice(_ACCEPTS))]
        return self._call(b"POST", path, self._loaded, body, headers)

    def stray(self) -> Call:
        paths = (*_STRAY, b"/models/" + self._name(0.3), b"/" + self._name(0))
        body = self._draw.choice([b"", self._generation()])
        method, path = self._draw.choice(_METHODS), self._draw.choice(paths)
        if method == b"POST" and not self._loads_any_body and path.rstrip(b"/") == b"/models":
            body = b""
        if method == b"DELETE":
            path = self._draw.choice(_STRAY)  # never the model that is known
        return self._call(method, path, body=body)

    def _call(
        self,
        method: bytes,
        path: bytes,
        name: str = "",
        body: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> Call:
        sent = [*headers]
        if name:
            sent.append((TARGET_HEADER.encode(), self._target(name).encode("latin1")))
        if self._seldom(0.2):
            sent.append(self._draw.choice(_EXTRA))
        return Call(method, path, tuple(sent), body)

    def _generation(self) -> bytes:
        """A body at, around and far beyond the bounds; whatever is sound in it is cheap."""
        if self._seldom(0.03):
            return self._draw.choice(_BODIES)
        body: dict[str, object] = {"prompt": self._draw.choice(_PROMPTS), "steps": 1}
        is_sound = self._seldom(0.3)
        for name, values in _FIELDS.items():
            if self._seldom(0.02 if name == "unknown" else 0.2):
                body[name] = self._draw.choice(values)
                if not is_sound and self._seldom(0.3):
                    body[name] = self._draw.choice(_ODD)
        content = _json(body)
        return self._damaged(content) if self._seldom(0.1) else content

    def _with_header(self, body: bytes) -> tuple[bytes, bytes]:
        """The body behind one of Triton's own headers, which anybody may write."""
        wrapped, media_type = wire.wrap(body, self._draw.choice(["image/png", "image/webp", "x"]))
        header = json.loads(wrapped[: int(media_type.removeprefix(_BINARY_TYPE))])
        for _ in range(self._draw.randrange(3)):
            places = [header, *_entries(header, "inputs"), *_entries(header, "outputs")]
            place = self._draw.choice(places)
            key = self._draw.choice([*place, *_HEADER_KEYS])
            place[key] = self._draw.choice((*_ODD, *_HEADER_VALUES))
        content = _json(header)
        content = self._damaged(content) if self._seldom(0.1) else content
        return content + body, f"{_BINARY_TYPE}{len(content)}".encode()

    def _name(self, sound: float) -> bytes:
        return self._loaded.encode() if self._seldom(sound) else self._draw.choice(_NAMES)

    def _text(self) -> str:
        texts = [value for value in _ODD if isinstance(value, str)]
        return self._draw.choice([*texts, "/", "/etc", "/tmp/absent", "file:///etc"])

    def _damaged(self, content: bytes) -> bytes:
        """Cut somewhere, with one byte replaced."""
        cut = bytearray(content[: self._draw.randrange(len(content) + 1)])
        if cut:
            cut[self._draw.randrange(len(cut))] = self._draw.randrange(256)
        return bytes(cut)

    def _seldom(self, chance: float) -> bool:
        return self._draw.random() < chance


def _entries(header: dict[str, object], key: str) -> list[dict[str, object]]:
    """What can still be changed below a key of a header."""
    value = header.get(key)
    entries = value if isinstance(value, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
