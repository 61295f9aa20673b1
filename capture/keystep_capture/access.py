"""Who may reach the wire: one CURVE key pair for each device and follower, checked by ZAP.

Where a guard stands, every connection is encrypted and authenticated by ZeroMQ before a byte of a
message is read. What a connection then sends carries its user id, which `Members` turns into the
device's id, or into nothing once the key was revoked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import zmq
import zmq.asyncio
import zmq.utils.z85
from zmq.auth.asyncio import AsyncioAuthenticator

from keystep_capture.key_files import DeviceKey, KeyPair

_ZAP_DOMAIN = b"keystep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A device or follower that is let in; `public` is its key in z85."""

    name: str
    public: bytes

    @property
    def user(self) -> str:
        """The ZAP user id: another one for each key, so that an old key never passes for a new."""
        return f"{self.name}/{hashlib.sha256(self.public).hexdigest()[:16]}"


class Members:
    """Who is let in now; the answer to each message's question costs one look into a dict."""

    def __init__(self, members: Iterable[Member] = ()) -> None:
        self.on_change: list[Callable[[], None]] = []
        self._by_key: dict[bytes, str] = {}
        self._names: dict[str, str] = {}
        self.replace(members)

    def __len__(self) -> int:
        """How many are let in."""
        return len(self._by_key)

    def replace(self, members: Iterable[Member]) -> None:
        """Let these in and nobody else, from now on; tells `on_change` if that is news."""
        members = list(members)
        by_key = {member.public: member.user for member in members}
        if by_key == self._by_key:
            return
        self._by_key = by_key
        self._names = {member.user: member.name for member in members}
        for tell in self.on_change:
            tell()

    def user_of(self, public: bytes) -> str | None:
        """The user id of a public key in z85; None: it is not let in."""
        return self._by_key.get(public)

    def name_of(self, user: str) -> str | None:
        """The name behind a user id; None: its key was revoked."""
        return self._names.get(user)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What stands before a socket: the server's key pair and those it lets in."""

    keys: KeyPair
    members: Members

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket that will be bound accept CURVE clients only."""
        socket.curve_server = True
        socket.curve_secretkey = self.keys.secret
        socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)

    def start(self, context: zmq.Context[zmq.Socket[bytes]]) -> AsyncioAuthenticator:
        """Answer the ZAP requests of a context, on the loop; to be stopped by the caller."""
        authenticator = _Authenticator(context, self.members)
        authenticator.start()
        return authenticator


def secure_client(socket: zmq.Socket[bytes], key: DeviceKey) -> None:
    """Make a socket that will be connected speak CURVE with the server of a key file."""
    socket.curve_serverkey = key.server_public
    socket.curve_publickey = key.keys.public
    socket.curve_secretkey = key.keys.secret


class _Authenticator(AsyncioAuthenticator):
    """Lets members in under their user ids."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], members: Members) -> None:
        super().__init__(zmq.asyncio.Context(context))
        self._members = members
        self.configure_curve_callback(
            domain=_ZAP_DOMAIN.decode(), credentials_provider=_Credentials(members)
        )

    def curve_user_id(self, client_public_key: bytes) -> str:
        """The user id that comes with every message of this connection."""
        return self._members.user_of(zmq.utils.z85.encode(client_public_key)) or ""


class _Credentials:
    """What pyzmq asks whether a key is let in."""

    def __init__(self, members: Members) -> None:
        self._members = members

    def callback(self, _domain: str, key: bytes) -> bool:
        """Whether a key is let in; pyzmq hands it over in z85."""
        return self._members.user_of(key) is not None
