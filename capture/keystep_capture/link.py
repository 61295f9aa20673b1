"""One connection of a source to a server: a DEALER socket that says when it is there and when not.

What is sent while there is no connection is not queued but refused, so nothing stale arrives after
a server's restart; libzmq dials again by itself, and each new connection is told of.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog
import zmq
from zmq.utils.monitor import recv_monitor_message

from keystep_capture import access, sockets, wire
from keystep_capture.clock import Clock
from keystep_capture.errors import RefusedError, WireError
from keystep_capture.key_files import DeviceKey

_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.SNDMORE) | _NOBLOCK
_EVENTS = int(zmq.EVENT_HANDSHAKE_SUCCEEDED) | int(zmq.EVENT_DISCONNECTED)

Payload = bytes | bytearray | memoryview
Context = zmq.Context[zmq.Socket[bytes]]

log = structlog.get_logger(__name__)


class LinkOwner(Protocol):
    """Who is told what comes; on the loop."""

    def on_connected(self) -> None:
        """The server can be reached: the first time, or again."""

    def on_disconnected(self) -> None:
        """The connection broke."""

    def on_message(self, message: wire.ServerMessage | None, payload: bytes) -> None:
        """The server said something; None: of a type that only a newer minor version knows."""

    def on_unreadable(self, error: WireError) -> None:
        """The server said something that is no valid message."""


class Link:
    """A socket to a server, with what it takes to use it inside asyncio."""

    def __init__(
        self,
        owner: LinkOwner,
        *,
        context: Context,
        server: str,
        key: DeviceKey | None,
        send_limit: int,
        clock: Clock,
    ) -> None:
        """Begin to dial.

        Args:
            owner: Is told what comes.
            context: ZeroMQ's.
            server: The server's endpoint.
            key: This device's key; where the server asks for one.
            send_limit: Messages that may wait in the socket.
            clock: Monotonic clock, ns.

        Raises:
            RefusedError: The endpoint is malformed.
        """
        self._owner = owner
        self._clock = clock
        self.heard_ns = clock()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 500)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RCVHWM, 64)
        socket.setsockopt(zmq.SNDHWM, send_limit)
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_PICTURE_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        if key is not None:
            access.secure_client(socket, key)
        self._socket = socket
        self._monitor: zmq.Socket[bytes] = socket.get_monitor_socket(_EVENTS)
        try:
            socket.connect(server)
        except zmq.ZMQError as error:
            self._close_sockets()
            raise RefusedError(
                f"server endpoint {server!r} is not usable ({error}); "
                "expected e.g. tcp://127.0.0.1:8041"
            ) from None
        loop = asyncio.get_running_loop()
        self._drain = sockets.Drain(socket, loop, self._take_one)
        self._events = sockets.Drain(self._monitor, loop, self._take_event)

    def close(self) -> None:
        """Let go of the connection; what is in the socket may still leave it."""
        self._drain.close()
        self._events.close()
        self._close_sockets()

    def _close_sockets(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()

    def send(self, message: wire.ClientMessage) -> bool:
        """Send a message without a payload; False where the server cannot be reached now."""
        try:
            self._socket.send(wire.encode(message), _NOBLOCK)
        except zmq.Again:
            return False
        finally:
            self._drain.poke()
        return True

    def send_packet(self, header: wire.PacketHeader, payload: Payload) -> bool:
        """Send a packet, its payload without a copy; False where it cannot be sent now."""
        socket = self._socket
        try:
            socket.send(wire.encode(header), _MORE)
        except zmq.Again:
            return False
        finally:
            self._drain.poke()
        # Without a copy from pyzmq's threshold of 64 KiB on; below it a copy is cheaper.
        socket.send(payload, _NOBLOCK, copy=False)
        return True

    def _take_one(self) -> None:
        header: bytes = self._socket.recv(_NOBLOCK)
        payload: bytes = self._socket.recv(_NOBLOCK) if self._socket.get(zmq.RCVMORE) else b""
        while self._socket.get(zmq.RCVMORE):
            self._socket.recv(_NOBLOCK)
        self.heard_ns = self._clock()
        try:
            message = wire.decode_server_message(header)
            if isinstance(message, wire.Picture):
                wire.check_picture(len(payload))
        except WireError as error:
            log.warning("message from the server dropped", reason=error.reason, error=str(error))
            self._owner.on_unreadable(error)
            return
        self._owner.on_message(message, payload)

    def _take_event(self) -> None:
        event = recv_monitor_message(self._monitor, _NOBLOCK)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._owner.on_connected()
        elif event == zmq.EVENT_DISCONNECTED:
            self._owner.on_disconnected()
