"""The outermost layer: who may ask, how much may arrive, and one log line and count a request."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from engine.serve.problems import Problem, internal
from engine.serve.service import BrokenOff, ClientGone, Service

OPEN = ("/livez", "/readyz")  # everything else needs a key, unless the server has none
PAGE = ("/", "/page/")  # and these from a server on the loopback only
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "testserver")
POLICY = "default-src 'self'; media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'"
log = logging.getLogger("clonewave.serve")


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A refused WebSocket is closed before it is accepted: the client sees a 403."""
        try:
            self._admit(scope)
        except Problem as problem:
            log.info("%s refused: %s", scope["path"], problem.code)
            await WebSocketClose(1008, problem.detail)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(scope, send, self.service.draining)
        begin = time.monotonic()
        self._active += 1
        try:
            self._admit(scope)
            if self._active > self.service.limits.requests:
                message = f"more than {self.service.limits.requests} requests at a time"
                raise Problem(503, "busy", message, retry=True, retry_after_s=1)
            body = _Body(scope, receive, self.service)
            await self.app(scope, body.receive, answer.send)
        except Problem as problem:
            await answer.problem(problem, receive)
        except ClientGone:
            answer.status = 499
        except BrokenOff as error:
            log.warning("request %s broken off: %s", answer.id, error)
        except Exception:
            log.exception("request %s failed", answer.id)
            await answer.problem(internal(), receive)  # nothing if an answer has begun
        finally:
            self._active -= 1
            route = getattr(scope.get("route"), "path", "none")
            self.service.metrics.requests.labels(route, str(answer.status)).inc()
            took = 1000 * (time.monotonic() - begin)
            log.info("%s %s %s %.0f ms %s", scope["method"], route, answer.status, took, answer.id)

    def _admit(self, scope: Scope) -> None:
        """Raise unless the request may go on; leaves its key in the scope."""
        connection = HTTPConnection(scope)
        if self.service.settings.open_to_all and not self.service.settings.insecure:
            _same_machine(connection.headers)
        key = self.service.identify(connection)
        scope["clonewave.key"] = key
        if key is None and not self._is_open(scope["path"]):
            raise Problem(401, "invalid_api_key", "give a valid key: `Authorization: Bearer KEY`")

    def _is_open(self, path: str) -> bool:
        page = path == PAGE[0] or path.startswith(PAGE[1])
        return path in OPEN or (page and self.service.settings.loopback)


def _same_machine(headers: Headers) -> None:
    """Without keys, whoever reaches the port may do everything: keep other sites' pages out.

    A page elsewhere may make the browser of this machine send requests here (CSRF), or have its
    own name resolve to the loopback (DNS rebinding). Programs send no Origin.
    """
    host = _host(headers.get("host", ""))
    if host not in LOCAL_HOSTS:
        raise Problem(403, "host_refused", "a server without keys answers only to localhost")
    origin = headers.get("origin")
    foreign = origin is not None and _host(urlsplit(origin).netloc) not in LOCAL_HOSTS
    if foreign or headers.get("sec-fetch-site") == "cross-site":
        raise Problem(403, "origin_refused", "pages of other sites may not use this server")


def _host(netloc: str) -> str:
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


class _Answer:
    """`send`, with the headers that every answer has, and what was sent remembered."""

    def __init__(self, scope: Scope, send: Send, draining: bool) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        self.status, self._begun = 0, False
        self._send, self._draining = send, draining

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun, self.status = True, message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.id
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Content-Security-Policy"] = POLICY
            headers.setdefault("Cache-Control", "no-store")
            if self._draining:
                headers["Connection"] = "close"
        await self._send(message)

    async def problem(self, problem: Problem, receive: Receive) -> None:
        """Send it, unless an answer has begun: then the connection breaks off, unfinished."""
        if not self._begun:
            scope: dict[str, Any] = {"type": "http"}
            await problem.response()(scope, receive, self.send)


class _Body:
    """`receive`, with the bytes counted and the time between them bounded."""

    def __init__(self, scope: Scope, receive: Receive, service: Service) -> None:
        self._receive, self._limits = receive, service.limits
        self._seen, self._complete = 0, False
        self._deadline = time.monotonic() + self._limits.body_total_s
        promised = Headers(scope=scope).get("content-length", "0")
        if promised.isdigit() and int(promised[:20]) > self._limits.body_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        if self._complete:  # what is left to come is the disconnect
            return await self._receive()
        patience = min(self._limits.body_idle_s, self._deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, patience))
        except (asyncio.TimeoutError, TimeoutError):
            text = "the upload stopped, or took too long; send it again"
            raise Problem(408, "slow_upload", text, retry=True, close=True) from None
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._seen > self._limits.body_bytes:
                raise self._too_large()
        return message

    def _too_large(self) -> Problem:
        text = f"more than {self._limits.body_bytes:,} bytes"
        return Problem(413, "body_too_large", text, close=True)
