"""Keys of the wire and the small files that carry them.

A key file is made on the server (`keystep device add`) and carried to the machine that dials. It
holds a secret, so it must be readable by its owner only, as the server's own key file is.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import zmq

from keystep_capture.errors import ConfigError

Role = Literal["device", "follower"]
"""A device sends to the ROUTER socket; a follower subscribes to the PUB socket."""

MAX_FILE_BYTES = 4096
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_Z85 = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A CURVE key pair, both halves in z85 (40 ASCII characters)."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        """Show the public half only."""
        return f"KeyPair(public={self.public!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKey:
    """What a program needs to dial a server that asks for keys.

    Attributes:
        name: The device's id, or the follower's name.
        role: What the key is for.
        keys: Its own key pair.
        server_public: The server's public key, z85.
        server: The server's endpoint, where it was given when the key was made.
    """

    name: str
    role: Role
    keys: KeyPair
    server_public: bytes
    server: str | None = None


class _DeviceKeyFile(msgspec.Struct, forbid_unknown_fields=True):
    keystep_key: int
    name: str
    role: Role
    public_key: str
    secret_key: str
    server_public_key: str
    server: str | None = None


class _ServerKeyFile(msgspec.Struct, forbid_unknown_fields=True):
    keystep_server_key: int
    public_key: str
    secret_key: str


def make_key_pair() -> KeyPair:
    """A new random key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public=public, secret=secret)


def write_device_key(path: Path, key: DeviceKey) -> None:
    """Write a key file that only its owner may read; never over another file.

    Raises:
        ConfigError: The file exists, or its folder does not.
    """
    _write_secret(
        path,
        _DeviceKeyFile(
            keystep_key=_FORMAT,
            name=key.name,
            role=key.role,
            public_key=key.keys.public.decode(),
            secret_key=key.keys.secret.decode(),
            server_public_key=key.server_public.decode(),
            server=key.server,
        ),
    )


def load_device_key(path: Path, role: Role = "device") -> DeviceKey:
    """Read a key file.

    Raises:
        ConfigError: It is missing, readable by others, not a key file, damaged, or of another role.
    """
    data = _read_secret(path)
    try:
        file = msgspec.json.decode(data, type=_DeviceKeyFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not a key file ({error}); `keystep device add` makes one"
        ) from None
    if file.keystep_key != _FORMAT:
        raise ConfigError(
            f"{path} is a key file of format {file.keystep_key}, this Keystep reads {_FORMAT}"
        )
    if file.role != role:
        raise ConfigError(f"{path} is the key of a {file.role}, expected that of a {role}")
    if not _NAME.fullmatch(file.name):
        raise ConfigError(f"{path}: name is {file.name[:80]!r}, expected 1-64 of A-Z a-z 0-9 . _ -")
    return DeviceKey(
        name=file.name,
        role=file.role,
        keys=_key_pair(path, file.public_key, file.secret_key),
        server_public=check_public_key(file.server_public_key, f"{path}: server_public_key"),
        server=file.server,
    )


def load_or_make_server_keys(path: Path) -> KeyPair:
    """The server's own key pair: read, or made on first use.

    Raises:
        ConfigError: The file is readable by others, damaged, or cannot be written.
    """
    if not path.exists():
        pair = make_key_pair()
        path.parent.mkdir(parents=True, exist_ok=True)
        if _write_secret_once(
            path,
            _ServerKeyFile(
                keystep_server_key=_FORMAT,
                public_key=pair.public.decode(),
                secret_key=pair.secret.decode(),
            ),
        ):
            return pair
    data = _read_secret(path)
    try:
        file = msgspec.json.decode(data, type=_ServerKeyFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not the server's key file ({error}); restore it from a backup, or remove "
            "it and make all devices' keys again"
        ) from None
    return _key_pair(path, file.public_key, file.secret_key)


def check_public_key(text: str, what: str) -> bytes:
    """A z85 public key as bytes.

    Raises:
        ConfigError: It is not one.
    """
    key = text.encode("utf-8", "replace")
    if not _Z85.fullmatch(key):
        raise ConfigError(f"{what} is damaged: expected 40 characters of z85")
    return key


def _key_pair(path: Path, public_text: str, secret_text: str) -> KeyPair:
    public = check_public_key(public_text, f"{path}: public_key")
    secret = check_public_key(secret_text, f"{path}: secret_key")
    if zmq.curve_public(secret) != public:
        raise ConfigError(f"{path} is damaged: its secret key does not belong to its public key")
    return KeyPair(public=public, secret=secret)


def _read_secret(path: Path) -> bytes:
    """The bytes of a file that only its owner may read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"key file {path} cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a file; expected a key file")
        if status.st_mode & 0o077:
            raise ConfigError(
                f"key file {path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}); "
                f"run: chmod 600 {path}"
            )
        data = os.read(descriptor, MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} has more than {MAX_FILE_BYTES} bytes; it is not a key file")
    return data


def _write_secret(path: Path, content: msgspec.Struct) -> None:
    if not _write_secret_once(path, content):
        raise ConfigError(f"{path} exists already; choose another --out or remove it")


def _write_secret_once(path: Path, content: msgspec.Struct) -> bool:
    """Write a new file of mode 0600 whole or not at all; False if there is one of that name."""
    try:
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # fails where the name is taken, unlike a rename
        finally:
            os.unlink(draft)
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigError(f"key file {path} cannot be written: {error.strerror}") from None
    return True
