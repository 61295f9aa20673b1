"""Where a source dials and under which name: checked before anything is opened."""

from __future__ import annotations

import re

from keystep_capture.access import check_token
from keystep_capture.errors import ConfigError
from keystep_capture.sockets import is_loopback

_ENDPOINT = re.compile(r"tcp://(\[[^\]\s]+\]|[^:/\s]+):\d{1,5}|ipc://\S+")
_DEVICE = re.compile(r"[A-Za-z0-9._-]{1,64}")


def check_target(*, server: str, device: str, token: str | None) -> None:
    """Refuse what no server would take.

    Raises:
        ConfigError: The endpoint or the device's id is malformed, or the server is on another
            machine and there is no token (without one it would not listen there).
    """
    if not _ENDPOINT.fullmatch(server):
        raise ConfigError(f"--server is {server!r}, expected e.g. tcp://127.0.0.1:8041")
    if not _DEVICE.fullmatch(device):
        raise ConfigError(
            f"--device-id is {device!r}, expected 1 to 64 letters, digits, dots, underscores "
            "or hyphens"
        )
    if token is not None:
        check_token(token)
    elif not is_loopback(server):
        raise ConfigError(
            f"the server at {server} is not on this machine: give its token (--token or "
            "KEYSTEP_TOKEN), without which it would not listen there"
        )
