"""Keeps web pages out of the laptop.

The loopback interface keeps other machines out, but not the browser on this one: any page could
send requests to the port, ministack allows every origin, and whoever may create a Lambda function
may run code. So requests that come from a page of another host, or that name a host that is not
this machine (DNS rebinding), are refused. boto3, the aws CLI and Limner send no Origin. Nor do
browsers with an image or a link, which suffice for AWS's query APIs (``GET /?Action=…``); but they
say that it comes from another site.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_BODY = json.dumps(
    {"__type": "AccessDeniedException", "message": "The laptop answers this machine only."}
).encode()


def is_this_machine(host: str) -> bool:
    """Whether a host name, without port, stands for the loopback interface."""
    name = host.strip("[]").lower().rstrip(".")
    # Buckets in virtual-host style are names below localhost, which resolvers keep on loopback.
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def guarded(application: Application) -> Application:
    """The same ASGI application, for this machine's own programs and pages only."""

    async def guard(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_welcome(scope):
            await application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": _BODY})

    return guard


def _is_welcome(scope: Message) -> bool:
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    host = urlsplit(f"//{headers.get(b'host', '')}").hostname
    if not is_this_machine(host or ""):
        return False
    origin = headers.get(b"origin")
    if origin is None:
        return headers.get(b"sec-fetch-site") != "cross-site"
    return is_this_machine(urlsplit(origin).hostname or "")
