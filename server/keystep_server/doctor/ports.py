"""Whether the server's ports are free, and who has them where they are not."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path

import zmq

from keystep_capture import sockets
from keystep_capture.errors import ConfigError
from keystep_capture.findings import Finding
from keystep_server.config import ServerConfig

_PORT = re.compile(r":(\d+)$")
_LISTENING = "0A"


def check_ports(config: ServerConfig) -> list[Finding]:
    """Try to bind REST, wire and PUB as the server would; all are let go at once."""
    return [
        _rest(config.rest_host, config.rest_port),
        _endpoint("wire", config.wire_bind, "--wire-bind"),
        _endpoint("publish", config.publish_bind, "--publish-bind"),
    ]


def _rest(host: str, port: int) -> Finding:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()
        except OSError as error:
            return _taken("rest", f"{host}:{port}", port, error.strerror or "", "--rest-port")
    return _free("rest", f"{host}:{port}")


def _endpoint(name: str, endpoint: str, option: str) -> Finding:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with context.socket(zmq.ROUTER) as bound:
            sockets.bind(bound, endpoint)
    except ConfigError as error:
        found = _PORT.search(endpoint)
        return _taken(name, endpoint, int(found[1]) if found else 0, str(error), option)
    finally:
        context.term()
    return _free(name, endpoint)


def _free(name: str, where: str) -> Finding:
    return Finding(area="ports", name=name, level="ok", detail=f"{where} is free")


def _taken(name: str, where: str, port: int, why: str, option: str) -> Finding:
    holder = port_holder(port)
    if holder is None:
        detail, remedy = f"{where}: {why}", f"stop what holds it, or choose another {option}"
        return Finding(area="ports", name=name, level="problem", detail=detail, remedy=remedy)
    pid, command = holder
    detail = f"{where} is taken by process {pid}: {command}"
    if "keystep" in command and "serve" in command.split():
        remedy = "a Keystep server runs already: use it, or stop it before you start another"
        return Finding(area="ports", name=name, level="warning", detail=detail, remedy=remedy)
    remedy = f"stop process {pid}, or choose another {option}"
    return Finding(area="ports", name=name, level="problem", detail=detail, remedy=remedy)


def port_holder(port: int) -> tuple[int, str] | None:
    """Process id and command line of who listens on a TCP port of this machine.

    Linux only; None where nobody does, or where it is another user's process.
    """
    inodes = _listening_inodes(port)
    for folder in Path("/proc").glob("[0-9]*") if inodes else ():
        # What is another user's, or ends meanwhile, cannot be read.
        with contextlib.suppress(OSError):
            if any(_link(descriptor) in inodes for descriptor in (folder / "fd").iterdir()):
                command = (folder / "cmdline").read_bytes().split(b"\0")
                words = [word.decode(errors="replace") for word in command if word]
                return int(folder.name), " ".join(words)[:200]
    return None


def _link(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except OSError:  # closed meanwhile
        return ""


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found
