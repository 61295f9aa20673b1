"""The `keystep` command as child processes: help, wrong usage, Ctrl-C, and the three together."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from keystep_capture.samples import find_sample, load_truth
from keystep_hololens.hl2ss.client import open_spatial_input
from keystep_server.demo_processes import KeystepProcess

COMMANDS = ("serve", "bridge", "simulate", "demo")
LOADED_LATER = ("sklearn", "onnxruntime", "fastapi", "sqlalchemy", "httpx", "av", "cv2", "zmq")


def keystep(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "keystep_capture.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Commands:
    """Commands that run until they are interrupted, each with a log of its own."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self._stack = stack

    async def start(self, name: str, *arguments: str) -> KeystepProcess:
        process = await KeystepProcess.start(name, self.folder, *arguments)
        self._stack.push_async_callback(process.kill)
        return process

    async def serve(self, *arguments: str, wire: str = "tcp://127.0.0.1:*") -> KeystepProcess:
        ports = ("--rest-port", "0", "--wire-bind", wire, "--publish-bind", "tcp://127.0.0.1:*")
        data = ("--data-dir", str(self.folder / "data"))
        return await self.start("serve", "serve", *data, *ports, *arguments)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    async def says(self, name: str, text: str) -> None:
        """Wait until a command's log holds a text; 30 seconds are a hung test."""
        await eventually(lambda: text in self.log(name))


async def eventually(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 (what is awaited has no event)
            await asyncio.sleep(0.02)


@pytest.fixture
async def commands(tmp_path: Path) -> AsyncIterator[Commands]:
    async with AsyncExitStack() as stack:
        yield Commands(tmp_path, stack)


# -- help and wrong usage ------------------------------------------------------------------------


def test_without_a_command_the_commands_are_listed() -> None:
    done = keystep()
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_given_without_loading_what_the_commands_need(command: str) -> None:
    program = (
        "import sys, keystep_capture.cli as cli\n"
        "try: cli.main()\n"
        f"finally: print('LOADED', *(set(sys.modules) & {set(LOADED_LATER)}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"keystep {command}" in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("frobnicate", "No such command 'frobnicate'"),
        ("simulate --bogus", "No such option: --bogus"),
        ("simulate", "give either --sample NAME or --video FILE"),
        ("simulate --sample juggling", "known samples: industreal-03, pour-coffee"),
        ("simulate --video nowhere.mp4", "there is no video file nowhere.mp4"),
        ("simulate --sample pour-coffee --base-port 0 --server tcp://127.0.0.1:9", "detections"),
        ("simulate --sample pour-coffee --microphone", "give --whole too"),
        ("bridge --device localhost --streams rgb,lidar", "no stream lidar; it has rgb, gaze"),
        ("bridge --device localhost --streams depth,depth_ahat", "cannot run together"),
        ("bridge --device localhost --video-codec av1", "--video-codec"),
        ("bridge --device localhost --time-scale -1", "--time-scale is -1.0, expected more than 0"),
        ("bridge --device localhost --time-scale nan", "--time-scale is nan"),
        ("bridge", "--device"),
        ("bridge --device localhost --size big", "expected e.g. 640x360@30"),
        ("bridge --device localhost --server tcp://192.0.2.1:8041", "keystep device add"),
        ("bridge --device localhost --key nowhere.key", "nowhere.key cannot be read"),
        ("demo --speed 99", "--speed"),
        ("serve --config nowhere.toml", "nowhere.toml does not exist"),
        ("serve --rest-host 0.0.0.0", "keystep token add"),
        ("serve --tls-key nowhere.pem", "needs both --tls-certificate and --tls-key"),
        ("serve --publish-bind here", "expected tcp://HOST:PORT"),
    ],
)
def test_wrong_usage_ends_with_code_2_and_one_line_that_says_what_to_do(
    arguments: str, said: str
) -> None:
    done = keystep(*arguments.split())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("keystep: ")
    assert said in line


@pytest.mark.parametrize("flag", ["--rest-port", "--wire-bind", "--publish-bind"])
def test_a_server_whose_port_is_in_use_says_which(flag: str, tmp_path: Path) -> None:
    ports = {"--rest-port": "0", "--wire-bind": "tcp://127.0.0.1:*"}
    ports["--publish-bind"] = ports["--wire-bind"]
    with socket.create_server(("127.0.0.1", 0)) as holder:
        number = str(holder.getsockname()[1])
        ports[flag] = number if flag == "--rest-port" else f"tcp://127.0.0.1:{number}"
        flags = [text for pair in ports.items() for text in pair]
        done = keystep("serve", "--data-dir", str(tmp_path), *flags)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"127.0.0.1:{number}" in line


def test_a_simulated_headset_whose_port_is_in_use_says_which() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        number = holder.getsockname()[1]
        base_port = ("--base-port", str(number - 9))  # remote configuration is at base + 9
        done = keystep("simulate", "--sample", "pour-coffee", *base_port)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"port {number} on 127.0.0.1 is in use" in line


# -- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
async def test_a_server_ends_cleanly_however_often_it_is_interrupted(
    commands: Commands, times: int
) -> None:
    server = await commands.serve()
    ready = await server.ready()
    async with httpx.AsyncClient(base_url=ready["rest"]) as rest:
        assert (await rest.get("/readyz")).status_code == 200
        for _ in range(times):
            server.signal(signal.SIGINT)
        await asyncio.wait_for(server.ended(), 30)  # with a connection still open
    assert "Traceback" not in commands.log("serve")
    assert "Stopping" in commands.log("serve")


async def test_a_server_that_ends_does_not_wait_long_for_a_request_that_never_ends(
    commands: Commands,
) -> None:
    server = await commands.serve()
    port = int((await server.ready())["rest"].rpartition(":")[2])
    head = b"POST /api/v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + b"Content-Type: application/json\r\n\r\n{")
        await asyncio.sleep(0.5)
        server.signal(signal.SIGTERM)
        await asyncio.wait_for(server.ended(), 30)
    assert "Cancel 1 running task" in commands.log("serve")
    assert "Traceback" not in commands.log("serve")


async def test_a_bridge_without_headset_or_server_says_so_once_and_tries_until_interrupted(
    commands: Commands,
) -> None:
    port = free_port()
    server = ("--server", f"tcp://127.0.0.1:{free_port()}")
    arguments = ("--device", "127.0.0.1", "--base-port", str(port), *server)
    bridge = await commands.start("bridge", "bridge", *arguments)
    told = ("personal_video", "spatial_input", "depth_long_throw", "clock")
    for what in told:
        await commands.says("bridge", f"what={what}")
    await asyncio.sleep(1.5)  # several more attempts
    await bridge.stop()
    log = commands.log("bridge")
    assert [log.count(f"what={what}") for what in told] == [1, 1, 1, 1]
    for wearer in ("guidance is not on the headset", "voice commands are not heard"):
        assert log.count(wearer) == 1
    assert log.count("refused the connection: start the hl2ss app") == 4 + 2
    assert "Traceback" not in log
    assert "Sent rgb 0 (dropped 0)" in log


async def test_a_simulated_headset_waits_for_a_missing_server_until_interrupted(
    commands: Commands,
) -> None:
    server = ("--server", f"tcp://127.0.0.1:{free_port()}")
    sample = ("--sample", "industreal-03", "--base-port", "0", "--time-scale", "1000")
    headset = await commands.start("simulate", "simulate", *sample, *server)
    base_port = int((await headset.ready())["base_port"])
    async with aclosing(open_spatial_input("127.0.0.1", base_port=base_port)) as packets:
        count = 0
        async for _ in packets:
            count += 1
    assert count == load_truth(find_sample("industreal-03")).frame_count
    assert headset.is_running  # its detections are not sent yet
    await headset.stop()
    assert "Traceback" not in commands.log("simulate")


# -- all three -----------------------------------------------------------------------------------


async def start_pair(commands: Commands, name: str, wire: str) -> list[KeystepProcess]:
    """A simulated headset on free ports and the bridge of it."""
    shared = ("--server", wire, "--device-id", name, "--time-scale", "32")
    shared += ("--method", "b3")
    sample = ("--sample", "industreal-03", "--base-port", "0")
    headset = await commands.start(f"{name}-simulate", "simulate", *sample, *shared)
    base_port = (await headset.ready())["base_port"]
    device = ("--device", "127.0.0.1", "--base-port", base_port)
    procedure = ("--procedure", "industreal-assy")
    bridge = await commands.start(f"{name}-bridge", "bridge", *device, *procedure, *shared)
    return [headset, bridge]


async def test_three_processes_make_a_session_each_for_two_headsets_at_once(
    commands: Commands,
) -> None:
    wire = f"tcp://127.0.0.1:{free_port()}"
    left = await start_pair(commands, "left", wire)  # before there is a server
    server = await commands.serve(wire=wire)
    ready = await server.ready()
    right = await start_pair(commands, "right", wire)
    for headset, bridge in (left, right):
        await headset.ended()
        await bridge.stop()
    truth = load_truth(find_sample("industreal-03"))
    async with httpx.AsyncClient(base_url=f"{ready['rest']}/api/v1") as rest:
        for device in ("left", "right"):
            found = (await rest.get("/sessions", params={"device": device})).json()
            (session,) = found["sessions"]
            events = (await rest.get(f"/sessions/{session['id']}/events")).json()["events"]
            steps = [(event["frame_idx"], event["step_id"]) for event in events]
            assert steps == [(step.frame, step.id) for step in truth.expected_b3]
            assert "[info] All steps are done. (9/9)" in commands.log(f"{device}-bridge")
            assert "Sent rgb 0 (dropped 0), gaze 2754" in commands.log(f"{device}-bridge")
    await server.stop()
