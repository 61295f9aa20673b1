"""Keys and tokens as an operator makes them, and what a running server does with them."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zmq
import zmq.asyncio

from keystep_capture import access
from keystep_capture.errors import RefusedError
from keystep_capture.key_files import DeviceKey, load_device_key

RAY = {"device_time_ns": 1, "payload": bytes(24), "encoding": "ray_f32"}


@pytest.fixture
def keystep(tmp_path: Path) -> Any:
    """Runs the command on the test's data directory, in a folder of its own."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    data_dir = ("--data-dir", str(tmp_path / "data"))

    def run(*arguments: str, ok: bool = True) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "keystep_capture.cli", *arguments, *data_dir],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=folder,
        )
        assert (done.returncode == 0) is ok, done.stderr
        return (done.stdout if ok else done.stderr).strip()

    return run


@pytest.fixture
def add_device(keystep: Any, tmp_path: Path) -> Any:
    """Makes a key by command and reads its file."""

    def add(name: str, *options: str) -> DeviceKey:
        keystep("device", "add", name, *options)
        role = "follower" if "--follower" in options else "device"
        return load_device_key(tmp_path / "elsewhere" / f"{name}.key", role)

    return add


def everything_on_disk(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.read_bytes()


# -- commands ----------------------------------------------------------------------------------


def test_a_key_file_holds_what_a_bridge_needs(keystep: Any, tmp_path: Path) -> None:
    keystep("device", "add", "bench-1", "--server", "tcp://server.example:8041")
    path = tmp_path / "elsewhere" / "bench-1.key"
    key = load_device_key(path)
    assert (key.name, key.server) == ("bench-1", "tcp://server.example:8041")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "data" / "server.key").stat().st_mode) == 0o600
    stored = b"".join(everything_on_disk(tmp_path / "data"))
    assert key.keys.public in stored
    assert key.keys.secret not in stored


def test_keys_are_listed_revoked_removed_and_made_again(keystep: Any) -> None:
    keystep("device", "add", "bench-1")
    assert "has a key already" in keystep("device", "add", "bench-1", "--out", "x", ok=False)
    keystep("device", "revoke", "bench-1")
    (line,) = keystep("device", "list").splitlines()
    assert line.startswith("bench-1")
    assert " device " in line
    assert "revoked" in line
    assert "exists already" in keystep("device", "add", "bench-1", ok=False)
    keystep("device", "add", "bench-1", "--out", "again.key")
    assert "revoked" not in keystep("device", "list")
    keystep("device", "remove", "bench-1")
    assert keystep("device", "list") == ""
    assert "no key of 'bench-1'" in keystep("device", "remove", "bench-1", ok=False)


def test_a_refused_name_leaves_no_file(keystep: Any, tmp_path: Path) -> None:
    for name in ("a b", ".", "..", "../x", ".hidden"):
        assert "1 to 64 of" in keystep("device", "add", name, ok=False)
    said = keystep("device", "add", "bench-1", "--server", "junk", ok=False)
    assert said == "keystep: --server is 'junk', expected e.g. tcp://127.0.0.1:8041"
    keystep("device", "add", "bench-1")
    keystep("device", "add", "bench-1", "--out", "second.key", ok=False)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["bench-1.key"]


def test_a_server_key_that_is_gone_is_not_made_again_while_keys_count_on_it(
    keystep: Any, tmp_path: Path
) -> None:
    keystep("device", "add", "bench-1")
    path = tmp_path / "data" / "server.key"
    path.unlink()
    for arguments in (("serve", "--rest-port", "0"), ("device", "add", "bench-2")):
        said = keystep(*arguments, ok=False)
        assert f"{path} is gone, and 1 keys were made for it (bench-1): restore it" in said
        assert "Traceback" not in said
    assert not path.exists()
    keystep("device", "revoke", "bench-1")
    keystep("device", "add", "bench-1", "--out", "again.key")
    assert path.exists()


def test_a_token_is_nowhere_on_disk(keystep: Any, tmp_path: Path) -> None:
    token = keystep("token", "add", "trainer", "--read-only")
    assert len(token) > 43
    assert not any(token.encode() in data for data in everything_on_disk(tmp_path))
    (line,) = keystep("token", "list").splitlines()
    assert line.split()[:2] == ["trainer", "read-only"]
    assert "already" in keystep("token", "add", "trainer", ok=False)
    keystep("token", "revoke", "trainer")
    assert "revoked" in keystep("token", "list")
    assert "no token 'nobody'" in keystep("token", "revoke", "nobody", ok=False)


# -- a running server ----------------------------------------------------------------------------


async def test_a_device_streams_until_its_key_is_revoked(
    keystep: Any, add_device: Any, tools: Any, tmp_path: Path
) -> None:
    bad, good = add_device("bad"), add_device("good")
    async with tools.live_server(tmp_path / "data") as live:
        cut = await live.join("bad", "gaze", key=bad)
        kept = await live.join("good", "gaze", key=good)
        cut.offer("gaze", **RAY)
        await live.worked_off(cut, "gaze", 1)
        keystep("device", "revoke", "bad")
        await tools.eventually(lambda: live.running(cut).done(), "the server heard of it")
        with pytest.raises(RefusedError, match="revoked"):
            await live.running(cut)
        kept.offer("gaze", **RAY)
        await live.worked_off(kept, "gaze", 1)


async def test_a_key_made_while_the_server_runs_is_let_in(
    add_device: Any, tools: Any, tmp_path: Path
) -> None:
    add_device("first")
    async with tools.live_server(tmp_path / "data") as live:
        await live.join("second", "gaze", key=add_device("second"))


async def test_nobody_comes_in_without_a_key_and_no_device_is_noted(
    add_device: Any, tools: Any, tmp_path: Path
) -> None:
    key, other = add_device("bench-1"), add_device("bench-2")
    async with tools.live_server(tmp_path / "data") as live:
        keyless = live.connect("bench-1", "gaze")
        impostor = live.connect("bench-1", "gaze", key=other)
        with pytest.raises(RefusedError, match="belongs to the device 'bench-2'"):
            await live.running(impostor)
        assert (await live.get("/devices"))["devices"] == []
        await live.join("bench-1", "gaze", key=key)
        assert [found["id"] for found in (await live.get("/devices"))["devices"]] == ["bench-1"]
        assert keyless.session is None


async def test_a_refused_hello_leaves_no_device(live: Any) -> None:
    sender = live.connect("bench-1", "gaze", procedure="none-such")
    with pytest.raises(RefusedError, match="none-such"):
        await live.running(sender)
    assert (await live.get("/devices"))["devices"] == []


async def test_a_follower_needs_a_followers_key_until_it_is_revoked(
    keystep: Any, add_device: Any, tools: Any, tmp_path: Path
) -> None:
    device, follower = add_device("bench-1"), add_device("andon", "--follower")
    async with tools.live_server(tmp_path / "data") as live:
        received: dict[str, Any] = {}
        with zmq.asyncio.Context() as context:
            for who, key in (("follower", follower), ("device", device), ("nobody", None)):
                socket = context.socket(zmq.SUB)
                socket.linger = 0
                if key is not None:
                    access.secure_client(socket, key)
                socket.connect(live.server.publish_endpoint)
                socket.subscribe("")
                received[who] = socket
            publisher = live.server.publisher
            await tools.eventually(lambda: publisher.follower_count == 1)
            publisher.session("ses_x", "open")
            topic, _ = await received["follower"].recv_multipart()
            assert topic == b"ses_x/session"
            for other in ("device", "nobody"):
                assert not await received[other].poll(200)
            keystep("device", "revoke", "andon")
            await tools.eventually(lambda: publisher.follower_count == 0)
            publisher.session("ses_x", "closed")
            assert not await received["follower"].poll(200)
            for socket in received.values():
                socket.close()


async def test_tokens_open_rest_by_what_they_allow(
    keystep: Any, tools: Any, tmp_path: Path
) -> None:
    token = {name: keystep("token", "add", name, *more) for name, more in
             (("writer", ()), ("reader", ("--read-only",)))}  # fmt: skip
    async with tools.live_server(tmp_path / "data") as live:

        async def status(method: str, who: str | None) -> int:
            headers = {"authorization": f"Bearer {token[who]}"} if who else {}
            body = {"device_id": "d", "kind": "expert"} if method == "POST" else None
            path = "/api/v1/sessions"
            answer = await live.rest.request(method, path, headers=headers, json=body)
            return answer.status_code

        assert await status("GET", None) == 401
        assert [await status("GET", who) for who in token] == [200, 200]
        assert [await status("POST", who) for who in ("reader", "writer")] == [403, 201]
        keystep("token", "revoke", "writer")

        async def shut_out() -> bool:
            return await status("GET", "writer") == 401

        async with asyncio.timeout(20):
            while not await shut_out():  # noqa: ASYNC110 - what is awaited has no event
                await asyncio.sleep(0.05)
        assert await status("GET", "reader") == 200


async def test_idle_rest_connections_are_ended(live: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("keystep_server.rest_protocol.FIRST_REQUEST_S", 0.05)
    url = httpx.URL(live.server.rest_url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: ")
    assert await reader.read() == b""
    writer.close()
    assert (await live.rest.get("/healthz")).status_code == 200


async def test_rest_connections_have_a_limit(live: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("keystep_server.rest_protocol.MAX_REST_CONNECTIONS", 4)
    url = httpx.URL(live.server.rest_url)
    opened = [await asyncio.open_connection(url.host, url.port) for _ in range(6)]
    for reader, _ in opened[4:]:
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    assert not opened[3][0].at_eof()
    for _, writer in opened:
        writer.close()
