"""ZeroMQ sockets inside asyncio, without a task or future per message.

`zmq.asyncio` costs tens of microseconds a message; here the socket's file descriptor wakes the loop
and everything that waits is taken at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable

import zmq

from keystep_capture.errors import ConfigError

_ENDPOINT = re.compile(r"tcp://(\[[^\]\s]+\]|[^:/\s]+):\d{1,5}|ipc://\S+")

MESSAGES_PER_TURN = 256
"""Messages taken before other callbacks of the loop get their turn."""


class Drain:
    """Calls `take_one` for each message that waits on a socket.

    `take_one` receives one message without blocking and raises `zmq.Again` when there is none.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        loop: asyncio.AbstractEventLoop,
        take_one: Callable[[], None],
    ) -> None:
        self._socket = socket
        self._loop = loop
        self._take_one = take_one
        self._scheduled = False
        self._open = True
        self._fd: int = socket.getsockopt(zmq.FD)  # type: ignore[assignment]
        loop.add_reader(self._fd, self._run)
        self.poke()

    def poke(self) -> None:
        """Look again soon: to be called after each send, which may hide an arrival.

        The descriptor is edge-triggered: a send processes commands, and with them the signal
        that a message has come.
        """
        if not self._scheduled and self._open:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def close(self) -> None:
        """Stop; the socket stays the caller's."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)

    def _run(self) -> None:
        self._scheduled = False
        if not self._open:
            return
        take_one = self._take_one
        try:
            for _ in range(MESSAGES_PER_TURN):
                take_one()
        except zmq.Again:
            return
        except Exception:
            self.poke()  # the rest is still waiting, and the descriptor may not say so again
            raise
        self.poke()


def check_endpoint(server: str) -> None:
    """Refuse what is no endpoint to dial.

    Raises:
        ConfigError: It is not.
    """
    if not _ENDPOINT.fullmatch(server):
        raise ConfigError(f"--server is {server!r}, expected e.g. tcp://127.0.0.1:8041")


def is_loopback(endpoint: str) -> bool:
    """Whether a ZeroMQ endpoint can be reached from this machine only."""
    transport, separator, address = endpoint.partition("://")
    if not separator:
        raise ConfigError(f"endpoint {endpoint!r} has no transport; expected e.g. tcp://HOST:PORT")
    if transport in ("ipc", "inproc"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, an interface or *: it may lead anywhere


def bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind a socket; return the endpoint with its real port.

    Raises:
        ConfigError: The endpoint is malformed, in use or not this machine's.
    """
    port = endpoint.rpartition(":")[2]
    if port.isdigit() and int(port) > 65535:  # libzmq would bind the remainder by 65536
        raise ConfigError(f"cannot bind {endpoint}: a port is at most 65535")
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        hints: dict[int | None, str] = {
            zmq.EADDRINUSE: "another program uses it; stop that or choose another port",
            zmq.EADDRNOTAVAIL: "no interface of this machine has that address",
            zmq.EINVAL: "expected e.g. tcp://127.0.0.1:8041",
        }
        hint = hints.get(error.errno, str(error))
        raise ConfigError(f"cannot bind {endpoint}: {hint}") from None
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))
