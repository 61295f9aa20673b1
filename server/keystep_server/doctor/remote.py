"""Whether a running server can be reached, and who may talk to it."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import httpx

from keystep_capture.errors import ConfigError
from keystep_capture.findings import Finding, Level

TIMEOUT_S = 3.0
_GREETING_BYTES = 64
# ZMTP 3.0: signature, version, mechanism NULL, not a server, filler (rfc.zeromq.org/spec/23).
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_START = "start it (keystep serve), and check address, port and firewall"


def check_server(address: str) -> list[Finding]:
    """Look at a server's REST side (http://...) or wire (tcp://HOST:PORT).

    Raises:
        ConfigError: Neither of the two.
    """
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme in ("http", "https") and parts.hostname:
        return [_rest(address)]
    if parts.scheme == "tcp" and parts.hostname and port:
        return [_wire(address, parts.hostname, port)]
    raise ConfigError(
        f"--server is {address!r}, expected http://HOST:8040 (REST) or tcp://HOST:8041 (wire)"
    )


def _rest(address: str) -> Finding:
    try:
        answer = httpx.get(f"{address.rstrip('/')}/readyz", timeout=TIMEOUT_S)
        checks = answer.json()["checks"]
        bad = [f"{check['name']}: {check['detail']}" for check in checks if not check["ok"]]
    except httpx.HTTPError as error:
        return _finding(address, "problem", f"does not answer: {error}", _START)
    except (ValueError, KeyError, TypeError):
        detail = f"answers {answer.status_code}, but not as a Keystep server"
        return _finding(address, "problem", detail, "check address and port")
    if bad or answer.status_code != 200:
        return _finding(address, "problem", f"is not ready: {'; '.join(bad)}", "see its log")
    shown = ", ".join(f"{check['name']}: {check['detail']}" for check in checks)
    return _finding(address, "ok", f"is ready ({shown})")


def _wire(address: str, host: str, port: int) -> Finding:
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
            connection.sendall(_GREETING)
            greeting = _read(connection)
    except OSError as error:
        return _finding(address, "problem", f"cannot be reached: {error}", _START)
    if len(greeting) < 32 or greeting[0] != 0xFF or greeting[9] != 0x7F:
        return _finding(address, "problem", "does not speak ZeroMQ", "check address and port")
    mechanism = greeting[12:32].rstrip(b"\0").decode("ascii", "replace")
    if mechanism == "CURVE":
        return _finding(
            address, "ok", "answers, encrypted: each device needs a key (keystep device add)"
        )
    return _finding(address, "ok", f"answers, without encryption ({mechanism})")


def _read(connection: socket.socket) -> bytes:
    greeting = b""
    while len(greeting) < _GREETING_BYTES and (part := connection.recv(_GREETING_BYTES)):
        greeting += part
    return greeting


def _finding(name: str, level: Level, detail: str, remedy: str = "") -> Finding:
    return Finding(area="server", name=name, level=level, detail=detail, remedy=remedy)
