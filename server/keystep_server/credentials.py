"""Keys and tokens: made, and watched while the server runs.

Another process may add or revoke them (`keystep device`, `keystep token`), so the server reads the
few rows again each second; what a message or request asks is answered from memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from keystep_capture.access import Guard, Member, Members
from keystep_capture.errors import ConfigError, DataError
from keystep_capture.key_files import (
    DeviceKey,
    KeyPair,
    Role,
    load_or_make_server_keys,
    make_key_pair,
    write_device_key,
)
from keystep_server.storage import AccessKey, RestToken, Store

WATCH_S = 1.0
_TOKEN_PREFIX = "keystep_"
_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")

log = structlog.get_logger(__name__)


def server_keys(data_dir: Path, store: Store) -> KeyPair:
    """The server's own CURVE keys, made on first use.

    Raises:
        ConfigError: The file is readable by others, damaged, cannot be written, or is gone while
            there are keys that were made for it: with another none of them would be let in.
    """
    path = data_dir / "server.key"
    if not path.exists():
        orphans = [key.name for key in store.credentials.access_keys() if key.revoked_at is None]
        if orphans:
            raise ConfigError(
                f"the server's key {path} is gone, and {len(orphans)} keys were made for it "
                f"({', '.join(orphans[:3])}{', ...' if len(orphans) > 3 else ''}): restore it from "
                "a backup; or have a new one made: first `keystep device revoke NAME` for each of "
                "these, then `keystep device add` anew"
            )
    return load_or_make_server_keys(path)


def add_key(
    store: Store,
    *,
    name: str,
    role: Role,
    server_public: bytes,
    server: str | None,
    path: Path,
    now: datetime,
) -> None:
    """Make a key, write its file and let it in.

    Raises:
        ConfigError: The file exists or cannot be written.
        DataError: The name is not 1 to 64 of A-Z a-z 0-9 . _ - or begins with a dot.
        StateError: The name has a key that is not revoked.
    """
    check_name(name)
    keys = make_key_pair()
    key = DeviceKey(name=name, role=role, keys=keys, server_public=server_public, server=server)
    write_device_key(path, key)  # first: a key that nobody holds need not be let in
    try:
        store.credentials.add_key(
            AccessKey(name=name, role=role, public_key=keys.public.decode(), created_at=now)
        )
    except BaseException:
        path.unlink()
        raise


def add_token(store: Store, *, name: str, read_only: bool, now: datetime) -> str:
    """Make a REST token; this is the only time it is seen, the database holds its hash.

    Raises:
        DataError: The name is not 1 to 64 of A-Z a-z 0-9 . _ -
        StateError: There is a token of this name that is not revoked.
    """
    check_name(name)
    token = _TOKEN_PREFIX + secrets.token_urlsafe(32)
    store.credentials.add_token(
        RestToken(name=name, sha256=_sha256(token.encode()), read_only=read_only, created_at=now)
    )
    return token


def check_name(name: str) -> None:
    """Refuse a name that could not be a device's id, or would make a hidden file.

    Raises:
        DataError: It could not.
    """
    if not _NAME.fullmatch(name):
        raise DataError(
            f"name is {name[:80]!r}, expected 1 to 64 of A-Z a-z 0-9 . _ - with no dot first"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a token allows."""

    name: str
    read_only: bool


class TokenBook:
    """The tokens that REST takes now.

    Attributes:
        required: Whether requests need one: off loopback, or once a token was made.
    """

    def __init__(self, *, bootstrap: str | None = None, exposed: bool = False) -> None:
        """Start without stored tokens.

        Args:
            bootstrap: A token from the settings, which may do everything.
            exposed: Other machines can reach REST.
        """
        self._bootstrap = _sha256(bootstrap.encode()) if bootstrap is not None else None
        self._exposed = exposed
        self._grants: dict[str, Grant] = {}
        self.required = exposed or bootstrap is not None

    def replace(self, tokens: Sequence[RestToken]) -> None:
        """Take these tokens and no others from now on, beside the settings' one."""
        self._grants = {
            token.sha256: Grant(name=token.name, read_only=token.read_only)
            for token in tokens
            if token.revoked_at is None
        }
        self.required = self._exposed or self._bootstrap is not None or bool(tokens)

    @property
    def is_empty(self) -> bool:
        """Whether no token would be taken."""
        return self._bootstrap is None and not self._grants

    def grant_of(self, given: bytes) -> Grant | None:
        """What a token allows, None for nothing; takes as long for any wrong one.

        Tokens have 256 random bits, so that one round of SHA-256 is enough.
        """
        digest, found = _sha256(given), None
        for stored, grant in self._grants.items():
            if hmac.compare_digest(stored, digest):
                found = grant
        if self._bootstrap is not None and hmac.compare_digest(self._bootstrap, digest):
            found = Grant(name="settings", read_only=False)
        return found


class Access:
    """Who is let in where, kept up to date with the database."""

    def __init__(self, store: Store, keys: KeyPair, tokens: TokenBook) -> None:
        """Read the database once (blocks)."""
        self._store = store
        self._keys = keys
        self._devices, self._followers = Members(), Members()
        self.tokens = tokens
        self._watch: asyncio.Task[None] | None = None
        self._roles_with_keys: set[Role] = set()
        self._apply(*self._read())

    def guard(self, role: Role, *, exposed: bool) -> Guard | None:
        """What stands before a socket; None on loopback while no key of the role was ever made."""
        if not exposed and role not in self._roles_with_keys:
            return None
        members = self._devices if role == "device" else self._followers
        if not members:
            option = "" if role == "device" else " --follower"
            log.warning(f"no {role} has a key; make one with: keystep device add NAME{option}")
        return Guard(keys=self._keys, members=members)

    def start(self) -> None:
        """Look at the database each second from now on, on the running loop."""
        self._watch = asyncio.get_running_loop().create_task(self._look(), name="access")

    async def stop(self) -> None:
        """Stop looking."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                found = await asyncio.to_thread(self._read)
            except SQLAlchemyError as error:  # those let in stay; /readyz tells of the database
                log.error("keys and tokens could not be read", error=type(error).__name__)
                continue
            self._apply(*found)

    def _read(self) -> tuple[list[AccessKey], list[RestToken]]:
        return (
            self._store.credentials.access_keys(),
            self._store.credentials.rest_tokens(),
        )

    def _apply(self, keys: Sequence[AccessKey], tokens: Sequence[RestToken]) -> None:
        for role, members in (("device", self._devices), ("follower", self._followers)):
            members.replace(
                Member(name=key.name, public=key.public_key.encode())
                for key in keys
                if key.role == role and key.revoked_at is None
            )
        self.tokens.replace(tokens)
        self._roles_with_keys = {key.role for key in keys}  # revoked ones too


def refuse_unguarded_rest(tokens: TokenBook, host: str) -> None:
    """Refuse to serve REST to other machines while no token exists.

    Raises:
        ConfigError: No token exists.
    """
    if tokens.is_empty:
        raise ConfigError(
            f"rest_host {host} can be reached from other machines, which needs a token; make one "
            "with `keystep token add NAME` (same --data-dir), or bind to 127.0.0.1"
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
