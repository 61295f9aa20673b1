"""Files that carry keys: made, read again, and refused when something is wrong with them."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError
from keystep_capture.key_files import (
    DeviceKey,
    load_device_key,
    load_or_make_server_keys,
    make_key_pair,
    write_device_key,
)


def device_key(**changes: object) -> DeviceKey:
    values = {
        "name": "bench-1",
        "role": "device",
        "keys": make_key_pair(),
        "server_public": make_key_pair().public,
        "server": "tcp://server.example:8041",
    }
    return DeviceKey(**{**values, **changes})  # type: ignore[arg-type]


def test_a_key_is_read_as_it_was_written_and_only_by_its_owner(tmp_path: Path) -> None:
    path, key = tmp_path / "bench-1.key", device_key()
    write_device_key(path, key)
    assert load_device_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["bench-1.key"]
    assert key.keys.secret.decode() not in repr(key)


def test_a_key_is_never_written_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bench-1.key"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        write_device_key(path, device_key())
    assert path.read_text() == "mine"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "bench-1.key"
    write_device_key(path, device_key())
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"mode {mode:04o}\); run: chmod 600"):
        load_device_key(path)


def test_a_followers_key_is_not_a_devices(tmp_path: Path) -> None:
    write_device_key(tmp_path / "f.key", device_key(role="follower"))
    with pytest.raises(ConfigError, match="key of a follower, expected that of a device"):
        load_device_key(tmp_path / "f.key")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("secret_key", make_key_pair().secret.decode(), "does not belong to its public key"),
        ("secret_key", "short", "secret_key is damaged"),
        ("server_public_key", "é" * 40, "server_public_key is damaged"),
        ("name", "../etc", "name is '../etc'"),
        ("keystep_key", 2, "format 2"),
        ("colour", "red", "is not a key file"),
    ],
    ids=["another pair's", "short", "not ASCII", "path", "format", "unknown field"],
)
def test_a_damaged_key_is_refused(tmp_path: Path, field: str, value: object, said: str) -> None:
    path = tmp_path / "bench-1.key"
    write_device_key(path, device_key())
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ConfigError, match=said):
        load_device_key(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, said in (("fifo", "not a file"), ("none", "No such file"), (".", "not a file")):
        with pytest.raises(ConfigError, match=said):
            load_device_key(tmp_path / name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=6000))
def test_any_bytes_give_an_error_in_words(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.key"
    path.touch(0o600)
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        load_device_key(path)
    with pytest.raises(ConfigError):
        load_or_make_server_keys(path)


def test_the_servers_keys_are_made_once_by_whoever_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "data" / "server.key"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: load_or_make_server_keys(path), range(16)))
    assert len(found) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
