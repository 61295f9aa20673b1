"""The public PUB socket: other programs follow sessions (docs/wire.md, PUB/SUB)."""

from __future__ import annotations

from typing import Any

import msgspec
import zmq

from keystep_capture import access, sockets, wire
from keystep_capture.errors import ConfigError
from keystep_server.storage import StoredEvent

SOCKET_HIGH_WATER_MARK = 256


class Publisher:
    """Publishes step events, guidance and session changes; drops for slow readers."""

    def __init__(self, bind: str, *, token: str | None = None) -> None:
        """Bind the socket.

        Raises:
            ConfigError: The endpoint is in use, malformed, or off loopback without a token.
        """
        if token is None and not sockets.is_loopback(bind):
            raise ConfigError(
                f"sessions would be open to the network at {bind}: set a token or bind to loopback"
            )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._authenticator = access.start_authenticator(self._context, token) if token else None
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.SNDHWM, SOCKET_HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_HEADER_BYTES)
        if token:
            access.secure_server(self._socket, token)
        try:
            self.endpoint = sockets.bind(self._socket, bind)
        except ConfigError:
            self.close()
            raise

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
        self._socket.close()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.term()

    def _publish(self, session_id: str, kind: str, body: dict[str, Any]) -> None:
        message = {**body, "protocol": wire.PROTOCOL, "session": session_id}
        topic = f"{session_id}/{kind}".encode()
        self._socket.send_multipart((topic, wire.encode(message)), zmq.NOBLOCK)
