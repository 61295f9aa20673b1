"""The public PUB socket: other programs follow sessions (docs/wire.md, PUB/SUB)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import zmq

from keystep_capture import sockets, wire
from keystep_capture.access import Guard
from keystep_capture.entrance import Entrance
from keystep_server.storage import StoredEvent

SOCKET_HIGH_WATER_MARK = 256
MAX_FOLLOWERS = 64
_SUBSCRIBE = b"\x01"


class Publisher:
    """Publishes step events, guidance and session changes; drops for slow readers."""

    def __init__(self, bind: str, *, guard: Guard | None = None) -> None:
        """Bind the socket.

        Args:
            bind: ZeroMQ endpoint.
            guard: The server's keys and the followers it lets in; needed off loopback.

        Raises:
            ConfigError: The endpoint is in use, malformed, or off loopback without a guard.
        """
        self._guard = guard
        self._followers: dict[int, str | None] = {}
        self.entrance = Entrance(
            zmq.XPUB,  # a PUB that shows who subscribes
            bind,
            guard=guard,
            options={
                zmq.LINGER: 200,
                zmq.SNDHWM: SOCKET_HIGH_WATER_MARK,
                zmq.MAXMSGSIZE: wire.MAX_HEADER_BYTES,
                zmq.XPUB_VERBOSE: 1,
            },
            known=lambda: set(self._followers),
            on_ended=self._forget,
        )
        self._socket, self.endpoint = self.entrance.socket, self.entrance.endpoint
        self._drain = sockets.Drain(self._socket, asyncio.get_running_loop(), self._take_one)
        if guard is not None:
            guard.members.on_change.append(self._drop_revoked)

    @property
    def follower_count(self) -> int:
        """How many connections have subscribed."""
        return len(self._followers)

    def step_event(self, event: StoredEvent) -> None:
        """Publish a step event that is stored (or retracted)."""
        self._publish(
            event.session_id,
            "step_event",
            {
                "id": event.id,
                "ordinal": event.ordinal,
                "step_id": event.step_id,
                "title": event.title,
                "kind": event.kind.value,
                "frame_idx": event.frame_idx,
                "device_time_ns": event.device_time_ns,
                "epoch": event.epoch,
                "detected_at": event.detected_at.isoformat(),
                "confidence": event.confidence,
                "branch": event.branch.value,
                "retracted": event.retracted,
                "retracted_at": event.retracted_at.isoformat() if event.retracted_at else None,
                "retracted_by": event.retracted_by,
                "retraction_evidence": event.retraction_evidence,
            },
        )

    def guidance(self, session_id: str, guidance: wire.Guidance) -> None:
        """Publish what the wearer is told."""
        self._publish(session_id, "guidance", msgspec.to_builtins(guidance))

    def session(self, session_id: str, state: str) -> None:
        """Publish a session's new state."""
        self._publish(session_id, "session", {"state": state})

    def close(self) -> None:
        """Close the socket."""
        if self._guard is not None:
            self._guard.members.on_change.remove(self._drop_revoked)
        self._drain.close()
        self.entrance.close()

    def _take_one(self) -> None:
        """Note who subscribed; what else a follower says means nothing here."""
        frame = self._socket.recv(zmq.NOBLOCK, copy=False)
        if not frame.bytes.startswith(_SUBSCRIBE):
            return
        fd = int(frame.get(zmq.SRCFD))
        self._followers.pop(fd, None)
        self._followers[fd] = str(frame.get("User-Id")) if self._guard is not None else None
        while len(self._followers) > MAX_FOLLOWERS:
            oldest = next(iter(self._followers))
            self._followers.pop(oldest)
            self.entrance.hang_up(oldest, "limit")
        self.entrance.spoke.add(fd)
        self._drop_revoked()

    def _forget(self, fd: int) -> None:
        self._followers.pop(fd, None)

    def _drop_revoked(self) -> None:
        """Hang up on followers whose keys were revoked."""
        if self._guard is None:
            return
        for fd, user in list(self._followers.items()):
            if user is not None and self._guard.members.name_of(user) is None:
                del self._followers[fd]
                self.entrance.hang_up(fd)

    def _publish(self, session_id: str, kind: str, body: dict[str, Any]) -> None:
        message = {**body, "protocol": wire.PROTOCOL, "session": session_id}
        topic = f"{session_id}/{kind}".encode()
        self._socket.send_multipart((topic, wire.encode(message)), zmq.NOBLOCK)
        self._drain.poke()
