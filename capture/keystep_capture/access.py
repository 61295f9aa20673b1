"""Who may reach the wire: CURVE keys made from one shared token.

Off loopback every connection is encrypted and authenticated by ZeroMQ's CURVE before a byte of a
message is read. Both sides derive their key pairs from the token, so that one secret is all there
is to carry to another machine. (Keys per device, with revocation, come with issue B.)
"""

from __future__ import annotations

import hashlib

import zmq
import zmq.utils.z85
from zmq.auth.asyncio import AsyncioAuthenticator

from keystep_capture.errors import ConfigError

MIN_TOKEN_CHARACTERS = 32
_ZAP_DOMAIN = "keystep"


def check_token(token: str) -> None:
    """Refuse a token that could be guessed.

    Raises:
        ConfigError: It is shorter than 32 characters.
    """
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise ConfigError(
            f"the token has {len(token)} characters, at least {MIN_TOKEN_CHARACTERS} are needed; "
            'make one with: python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
        )


def _key_pair(token: str, role: str) -> tuple[bytes, bytes]:
    """The (public, secret) z85 keys of a role under a token."""
    check_token(token)
    secret = hashlib.blake2b(token.encode(), digest_size=32, person=role.encode()).digest()
    secret_z85 = zmq.utils.z85.encode(secret)
    return zmq.curve_public(secret_z85), secret_z85


def secure_server(socket: zmq.Socket[bytes], token: str) -> None:
    """Make a socket that will be bound accept CURVE clients only."""
    _, secret = _key_pair(token, "keystep-server")
    socket.curve_server = True
    socket.curve_secretkey = secret
    socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN.encode())


def secure_client(socket: zmq.Socket[bytes], token: str) -> None:
    """Make a socket that will be connected speak CURVE with the server of this token."""
    server_public, _ = _key_pair(token, "keystep-server")
    public, secret = _key_pair(token, "keystep-client")
    socket.curve_serverkey = server_public
    socket.curve_publickey = public
    socket.curve_secretkey = secret


def start_authenticator(
    context: zmq.Context[zmq.Socket[bytes]], token: str
) -> AsyncioAuthenticator:
    """Answer ZAP requests of a context: only the token's client key is let in."""
    client_public, _ = _key_pair(token, "keystep-client")
    authenticator = AsyncioAuthenticator(zmq.asyncio.Context(context))
    authenticator.start()
    authenticator.configure_curve_callback(
        domain=_ZAP_DOMAIN, credentials_provider=_OneKey(zmq.utils.z85.decode(client_public))
    )
    return authenticator


class _OneKey:
    """Accepts one public key."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a key is the one; `key` comes as 32 bytes or in z85."""
        return key == self._public or key == zmq.utils.z85.encode(self._public)
