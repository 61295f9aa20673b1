"""A socket that others dial: bound, guarded, with a limit on its connections.

libzmq takes any number of connections and bounds neither what an unfinished message grows to nor
how long an authenticated stranger stays silent. Its monitor names each connection's descriptor, and
each message the descriptor it came by; with that a single connection can be hung up on.
"""

from __future__ import annotations

import asyncio
import os
import socket as system_socket
import struct
from collections import Counter
from collections.abc import Callable, Mapping

import structlog
import zmq
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils.monitor import parse_monitor_message

from keystep_capture import sockets
from keystep_capture.access import Guard
from keystep_capture.errors import ConfigError

MAX_CONNECTIONS = 192
"""Peers (at most 64), those that have said nothing yet, and handshakes in progress."""
MAX_UNFINISHED_BYTES = 16 * 1024 * 1024
"""A connection that brings this much without completing a message is hung up on."""
HANDSHAKE_MS = 5000
BACKLOG = 128
LOOK_S = 0.25

_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_ACCEPT_FAILED | _FAILED
_BYTES_RECEIVED_OFFSET = 128  # of tcpi_bytes_received in Linux' struct tcp_info

log = structlog.get_logger(__name__)


class Entrance:
    """Owns a bound socket with its context, authenticator and connections; on the loop.

    Attributes:
        socket: The bound socket.
        endpoint: Where it is bound, with its real port.
        guard: Who is let in; None on loopback where everyone is.
        spoke: To be given the descriptor of every message that was read.
        counts: Connections by what became of them: `accepted`, `ended` (by either side, for
            whatever reason: libzmq does not say that a frame was too large), `handshake_failed`,
            `limit` (hung up on to make room), `unfinished`, `hung_up` (by a caller of `hang_up`).
    """

    def __init__(
        self,
        kind: int,
        bind: str,
        *,
        guard: Guard | None,
        options: Mapping[int, int],
        known: Callable[[], set[int]],
        on_ended: Callable[[int], None] = lambda _: None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Bind the socket.

        Args:
            kind: `zmq.ROUTER` or `zmq.XPUB`.
            bind: ZeroMQ endpoint.
            guard: Who is let in; needed off loopback.
            options: Socket options beside those every entrance has.
            known: Descriptors of connections that are not hung up on to make room for newer ones.
            on_ended: Told the descriptor of each connection that has ended.
            max_connections: Above this the oldest unknown connection is hung up on.

        Raises:
            ConfigError: The endpoint is in use or malformed, or off loopback without a guard.
        """
        if guard is None and not sockets.is_loopback(bind):
            raise ConfigError(
                f"{bind} would be open to the network: a bind off loopback needs keys"
            )
        self.guard = guard
        self.spoke: set[int] = set()
        self.counts: Counter[str] = Counter()
        self._known = known
        self._on_ended = on_ended
        self._max_connections = max_connections
        self._open: dict[int, int] = {}  # oldest first: bytes received at its last message
        self._suspects: set[int] = set()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._authenticator: AsyncioAuthenticator | None = None
        self.socket = self._context.socket(kind)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self.socket.setsockopt(zmq.BACKLOG, BACKLOG)
        for name, value in options.items():
            self.socket.setsockopt(name, value)
        if guard is not None:
            self._authenticator = guard.start(self._context)
            guard.secure(self.socket)
        self._monitor = self.socket.get_monitor_socket(_EVENTS)
        try:
            self.endpoint = sockets.bind(self.socket, bind)
        except ConfigError:
            self._close_sockets()
            raise
        loop = asyncio.get_running_loop()
        self._drain = sockets.Drain(self._monitor, loop, self._take_event)
        self._watch = loop.create_task(self._look_for_unfinished(), name="unfinished messages")

    @property
    def connection_count(self) -> int:
        """Connections that are open, authenticated or not."""
        return len(self._open)

    def hang_up(self, fd: int, reason: str = "hung_up") -> None:
        """End one connection; its unfinished message is freed with it.

        A descriptor that is no longer a connection of this socket is left alone.
        """
        if self._open.pop(fd, None) is None:
            return
        self.counts[reason] += 1
        connection = self._connection(fd)
        if connection is None:
            return
        with connection:
            try:
                connection.shutdown(system_socket.SHUT_RDWR)
            except OSError:
                return  # it has ended by itself

    def close(self) -> None:
        """Close the socket; what it holds to be sent has its linger time."""
        self._watch.cancel()
        self._drain.close()
        self._close_sockets()

    def _close_sockets(self) -> None:
        self.socket.disable_monitor()
        self._monitor.close()
        self.socket.close()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.term()

    def _take_event(self) -> None:
        message = self._monitor.recv_multipart(zmq.NOBLOCK)
        event = parse_monitor_message(message)
        kind, value = int(event["event"]), int(event["value"])
        if kind == zmq.EVENT_ACCEPTED:
            self.counts["accepted"] += 1
            self._open.pop(value, None)
            self._open[value] = 0
            self._suspects.discard(value)
            self.spoke.discard(value)
            self._make_room()
        elif kind == zmq.EVENT_DISCONNECTED:
            self.counts["ended"] += 1
            self._open.pop(value, None)
            self._on_ended(value)
        elif kind == zmq.EVENT_ACCEPT_FAILED:
            self.counts["accept_failed"] += 1
        elif kind & _FAILED:
            self.counts["handshake_failed"] += 1

    def _make_room(self) -> None:
        """Hang up on the oldest unknown connection, so that a newcomer always finds room."""
        if len(self._open) <= self._max_connections:
            return
        known = self._known()
        oldest = next((fd for fd in self._open if fd not in known), None)
        if oldest is not None:
            if not self.counts["limit"]:
                log.warning("too many connections", endpoint=self.endpoint, limit=len(self._open))
            self.hang_up(oldest, "limit")

    async def _look_for_unfinished(self) -> None:
        """Hang up on what brings bytes but no messages.

        Twice in a row, since after a long turn of the loop whole messages may be waiting.
        """
        while True:
            await asyncio.sleep(LOOK_S)
            spoke, self.spoke = self.spoke, set()
            suspects = set()
            for fd, bytes_before in list(self._open.items()):
                received = self._bytes_received(fd)
                if fd in spoke:
                    self._open[fd] = received
                elif received - bytes_before > MAX_UNFINISHED_BYTES:
                    suspects.add(fd)
            for fd in suspects & self._suspects:
                log.warning("a message without end was cut off", endpoint=self.endpoint)
                self.hang_up(fd, "unfinished")
            self._suspects = suspects

    def _bytes_received(self, fd: int) -> int:
        connection = self._connection(fd)
        if connection is None:
            return 0
        with connection:
            try:
                info = connection.getsockopt(
                    system_socket.IPPROTO_TCP, system_socket.TCP_INFO, _BYTES_RECEIVED_OFFSET + 8
                )
            except OSError:
                return 0  # not TCP
        if len(info) < _BYTES_RECEIVED_OFFSET + 8:
            return 0
        received: int = struct.unpack_from("<Q", info, _BYTES_RECEIVED_OFFSET)[0]
        return received

    def _connection(self, fd: int) -> system_socket.socket | None:
        """A second handle of a connection; None if the number means something else by now."""
        port = self.endpoint.rpartition(":")[2]
        try:
            connection = system_socket.socket(fileno=os.dup(fd))
        except OSError:
            return None
        try:
            name = connection.getsockname()
            if isinstance(name, tuple) and str(name[1]) == port:
                return connection
        except OSError:
            pass
        connection.close()
        return None
