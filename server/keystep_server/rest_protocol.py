"""HTTP connections with limits that uvicorn's own protocol does not have."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_REST_CONNECTIONS = 512
FIRST_REQUEST_S = 10.0


class LimitedProtocol(H11Protocol):
    """Hangs up on connections above a number, and on those that never finish a first request.

    A connection that was accepted costs a file descriptor, which the server needs for its files.
    """

    def connection_made(  # type: ignore[override]
        self, transport: asyncio.Transport
    ) -> None:
        """Take a connection, or end it at once."""
        if len(self.connections) >= MAX_REST_CONNECTIONS:
            transport.abort()
            return
        super().connection_made(transport)
        self.loop.call_later(FIRST_REQUEST_S, self._end_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection that was taken."""
        if self in self.connections:
            super().connection_lost(exc)

    def _end_if_silent(self) -> None:
        cycle: object | None = self.cycle  # uvicorn's types leave out that it begins as None
        if cycle is None:
            self.transport.abort()
