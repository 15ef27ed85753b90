"""What OpenEnv's server lacks between it and the network: limits, and answers to nonsense.

OpenEnv 0.10 ends a session at a message that is JSON but no object, at bytes, at an integer of
5,000 digits, at deep nesting and at an error about half a surrogate pair. It has no limit on
the size of HTTP bodies, none on how long a websocket may say nothing, and lets anybody open
sessions by HTTP that never end. Here such requests are answered with an error, and the session
goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from personalllm_env.adapters.openenv.messages import BadMessage, checked

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_SOCKETS = ("/ws", "/ws/ui")  # the second is the web page's
_PAGES, _ASKED = "/web/", ("/web/reset", "/web/step")  # the others are Gradio's own: uploads
_GOING_AWAY, _REFUSED = 1001, 1008


@dataclass(frozen=True)
class Limits:
    """How much a server takes.

    Attributes:
        max_sessions: Episodes at a time; further clients are told so.
        max_message: Bytes of a message or of a body.
        idle_seconds: After so long without a message a session ends.
        request_seconds: For a body to arrive, and for a client to take an answer.

    Raises:
        ValueError: If one is not positive.
    """

    max_sessions: int = 64
    max_message: int = 256 * 1024
    idle_seconds: float = 600.0
    request_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name, least, whole in (
            ("max_sessions", 1, True),
            ("max_message", 1024, True),
            ("idle_seconds", 0.01, False),
            ("request_seconds", 0.01, False),
        ):
            number = getattr(self, name)
            kinds = int if whole else (int, float)
            if not isinstance(number, kinds) or isinstance(number, bool) or not number >= least:
                raise ValueError(f"{name} must be at least {least}, got {number!r}")


class Guard:
    """An ASGI application in front of another.

    Args:
        app: OpenEnv's.
        limits: What is passed on to it.

    Attributes:
        limits: The same.
    """

    def __init__(self, app: App, limits: Limits) -> None:
        self.limits, self._app = limits, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            await self._request(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in _SOCKETS:  # such as /mcp: there are no tools here
            await receive()
            await send({"type": "websocket.close", "code": _REFUSED})
            return
        socket = _Socket(receive, send, self.limits)
        await self._app(scope, socket.receive, socket.send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, limits = str(scope["path"]), self.limits
        try:
            async with asyncio.timeout(limits.request_seconds):
                body = await _body(receive, limits.max_message)
        except TimeoutError:
            await _answer(send, 408, f"the body took over {limits.request_seconds:g} seconds")
            return
        if body is None:
            await _answer(send, 413, f"the body has over {limits.max_message:,} bytes")
            return
        if body and (path in _ASKED or not path.startswith(_PAGES)):
            try:
                text = checked(body.decode("utf-8"))
            except (UnicodeDecodeError, BadMessage) as error:
                await _answer(send, 422, str(error))
                return
            if path.rstrip("/") == "/mcp" and _is_about_sessions(text):
                await _answer(
                    send, 403, "sessions are opened by connecting to the websocket /ws"
                )
                return
            body = text.encode("utf-8")
        await self._app(scope, _replayed(body, receive), send)


class _Socket:
    """A websocket whose application gets sound messages only, and none too late."""

    def __init__(self, receive: Receive, send: Send, limits: Limits) -> None:
        self._receive, self._send, self._limits = receive, send, limits
        self._gone = False

    async def receive(self) -> Message:
        """Returns the next message that is sound; answers the others."""
        while not self._gone:
            try:
                async with asyncio.timeout(self._limits.idle_seconds):
                    message = await self._receive()
            except TimeoutError:
                idle = f"no message for {self._limits.idle_seconds:g} seconds: the session ends"
                await self._tell("SESSION_ERROR", idle)
                await self.send({"type": "websocket.close", "code": _GOING_AWAY})
                break
            if message["type"] != "websocket.receive":
                self._gone = message["type"] == "websocket.disconnect"
                return message
            text = message.get("text")
            try:
                if text is None:
                    raise BadMessage("INVALID_JSON", "expected a text message, got bytes")
                return {"type": "websocket.receive", "text": checked(text)}
            except BadMessage as error:
                await self._tell(error.code, str(error))
        self._gone = True
        return {"type": "websocket.disconnect", "code": _GOING_AWAY}

    async def send(self, message: Message) -> None:
        """Sends, unless the client is gone or does not take it: then the session ends."""
        if self._gone:
            return
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                await self._send(message)
        except (OSError, RuntimeError):  # gone, gone while we were closing, or not reading
            self._gone = True

    async def _tell(self, code: str, words: str) -> None:
        answer = {"type": "error", "data": {"message": words, "code": code}}
        await self.send({"type": "websocket.send", "text": json.dumps(answer)})


async def _body(receive: Receive, most: int) -> bytes | None:
    """Returns a request's body, or None if it is too large."""
    parts, size = [], 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Returns what gives the whole body first, and then what the connection gives."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


def _is_about_sessions(text: str) -> bool:
    """Says whether a request by HTTP would open, close or use a session of its own."""
    request = json.loads(text)
    params = request.get("params")
    named = isinstance(params, dict) and "session_id" in params
    return named or str(request.get("method")).startswith("openenv/")


async def _answer(send: Send, status: int, words: str) -> None:
    """Answers with an error, and closes: what is left of the request is not read."""
    body = json.dumps({"detail": words}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
