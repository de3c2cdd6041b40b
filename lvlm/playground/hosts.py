"""The page answers to its own address alone.

A page of somebody else's may let its name lead to this machine (DNS rebinding): the browser then takes the
server here for that page's own, and hands over what it says. The name stands in the request's Host header, so
that a foreign one is refused. An address in numbers needs no name server, and can't be turned.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class OnlyAddressed:
    """ASGI middleware that refuses requests whose Host isn't the page's, with status 403.

    Args:
        app: what answers the others.
        host: the address that the server listens at.
        port: its port, which a Host names, too, unless it is 80.
    """

    def __init__(self, app: App, *, host: str, port: int) -> None:
        self.app, self.host, self.port = app, host, port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] in ("http", "websocket") and not self._is_asked(scope):
            await (self._refuse if scope["type"] == "http" else _hang_up)(send)
        else:
            await self.app(scope, receive, send)

    def _is_asked(self, scope: Scope) -> bool:
        """Whether a request has one Host, and that is the page's."""
        said = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"host"]
        return len(said) == 1 and is_addressed(said[0], self.host, self.port)

    async def _refuse(self, send: Send) -> None:
        where = f"http://{shown_host(self.host)}:{self.port}/"
        words = f"this page is at {where} and answers to no other name\n".encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(words))]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": words})


async def _hang_up(send: Send) -> None:
    await send({"type": "websocket.close", "code": 1008})  # against the server's policy


def is_addressed(said: str, host: str, port: int) -> bool:
    """Whether a Host header names the page.

    Args:
        said: the header: a name or an address, and a port.
        host: the address that the server listens at.
        port: its port.
    """
    name, colon, number = said.rpartition(":")
    if not colon or said.endswith("]"):
        name, number = said, "80"
    if number != str(port):
        return False
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    name = name.lower()
    if name in LOOPBACK or name == host.lower():
        return True
    if host not in ("0.0.0.0", "::"):
        return False
    return _is_address(name) or name == socket.gethostname().lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else host == "localhost"


def shown_host(host: str) -> str:
    """An address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
