"""The socket that a server listens at, and how long it waits for requests to arrive."""

from __future__ import annotations

import asyncio
import socket

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from personalllm_env.adapters.openenv.guard import Guard

_HEAD_SECONDS = 10.0  # for the head of a request: a websocket's handshake, too


class InTime(H11Protocol):
    """Uvicorn's HTTP, which waits for ever for a request to arrive: here it does not."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Reads; waits on, no longer than before, if that was not the whole head."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket bound to an address; port 0 takes a free one.

    Raises:
        ValueError: If it cannot be had: somebody else has it, or it is not this machine's.
    """
    if not 0 <= port <= 65_535:
        raise ValueError(f"port must be in 0..65535, got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(f"cannot listen at {host}, port {port}: {error}") from None


def serve(app: Guard, bound: socket.socket) -> None:
    """Serves until it is interrupted or terminated.

    Args:
        app: What ``build_app`` made.
        bound: Where.
    """
    limits = app.limits
    config = uvicorn.Config(
        app,
        http=InTime,
        log_level="warning",
        ws_max_size=limits.max_message,
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        ws_per_message_deflate=False,  # costs more than it saves, and bombs are made of it
        h11_max_incomplete_event_size=16 * 1024,
        limit_concurrency=2 * limits.max_sessions + 32,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[bound])
