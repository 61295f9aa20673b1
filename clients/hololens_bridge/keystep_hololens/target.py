"""Where a source dials and under which name: checked before anything is opened."""

from __future__ import annotations

import re
from pathlib import Path

from keystep_capture.errors import ConfigError
from keystep_capture.key_files import DeviceKey, load_device_key
from keystep_capture.sockets import check_endpoint, is_loopback

DEFAULT_SERVER = "tcp://127.0.0.1:8041"
_DEVICE = re.compile(r"[A-Za-z0-9._-]{1,64}")


def load_key(
    path: Path | None, *, server: str | None, device: str | None
) -> tuple[DeviceKey | None, str, str | None]:
    """The key of a file with the endpoint and device id it brings along.

    Returns:
        The key (None without a file), the endpoint and the device's id (None: neither given).

    Raises:
        ConfigError: The file is no good, or belongs to another device than the one that was named.
    """
    if path is None:
        return None, server or DEFAULT_SERVER, device
    key = load_device_key(path)
    if device is not None and device != key.name:
        raise ConfigError(f"--device-id is {device!r}, but {path} is the key of {key.name!r}")
    return key, server or key.server or DEFAULT_SERVER, key.name


def check_target(*, server: str, device: str, key: DeviceKey | None) -> None:
    """Refuse what no server would take.

    Raises:
        ConfigError: The endpoint or the device's id is malformed, the key is another device's, or
            the server is on another machine and there is no key (it asks for one there).
    """
    check_endpoint(server)
    if not _DEVICE.fullmatch(device):
        raise ConfigError(
            f"--device-id is {device!r}, expected 1 to 64 letters, digits, dots, underscores "
            "or hyphens"
        )
    if key is not None and key.name != device:
        raise ConfigError(f"the key is that of {key.name!r}, expected {device!r}")
    if key is None and not is_loopback(server):
        raise ConfigError(
            f"the server at {server} is not on this machine: give this device's key file (--key); "
            "`keystep device add` makes it there"
        )
