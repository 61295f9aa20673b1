"""Who may bind where, and who is let in."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import structlog
import zmq
from zmq.utils.monitor import recv_monitor_message

from keystep_capture import access
from keystep_capture.errors import ConfigError
from keystep_capture.sockets import is_loopback

TOKEN, WRONG_TOKEN = "right-" * 6, "wrong-" * 6
RAY = struct.pack("<6f", 0, 1.6, 0, 0, 0, -1)


@pytest.fixture(autouse=True)
def _quiet_logs() -> Any:
    with structlog.testing.capture_logs():
        yield


# -- binds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:*", "tcp://*:*", "tcp://[::]:*", "tcp://eth0:*"])
async def test_a_bind_off_loopback_needs_a_token(rig: Any, bind: str) -> None:
    with pytest.raises(ConfigError, match="set a token"):
        rig.receive(bind)


async def test_a_bind_off_loopback_works_with_a_token(rig: Any) -> None:
    endpoint = rig.receive("tcp://0.0.0.0:*", token=TOKEN).endpoint
    here = endpoint.replace("0.0.0.0", "127.0.0.1")
    await rig.open("gaze", endpoint=here, token=TOKEN)


async def test_a_port_in_use_is_reported_and_leaves_the_first_alone(rig: Any) -> None:
    first = rig.receive()
    for token in (None, TOKEN):
        with pytest.raises(ConfigError, match="another program uses it"):
            rig.receive(first.endpoint, token=token)
    await rig.open("gaze", endpoint=first.endpoint)


@pytest.mark.parametrize(
    ("bind", "message"),
    [
        ("127.0.0.1:8041", "has no transport"),
        ("tcp://127.0.0.1:99999", "at most 65535"),
        ("tcp://127.0.0.1:port", r"expected e\.g\. tcp://"),
    ],
)
async def test_a_malformed_bind_is_reported(rig: Any, bind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rig.receive(bind)


@pytest.mark.parametrize("token", ["", "t" * 31])
async def test_a_token_that_could_be_guessed_is_refused(rig: Any, token: str) -> None:
    with pytest.raises(ConfigError, match="at least 32 are needed"):
        rig.receive("tcp://0.0.0.0:*", token=token)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("tcp://127.0.0.1:8041", True),
        ("tcp://127.8.9.1:8041", True),
        ("tcp://[::1]:8041", True),
        ("tcp://localhost:8041", True),
        ("ipc:///run/keystep.sock", True),
        ("tcp://127.0.0.1.example.org:8041", False),
        ("tcp://192.168.0.7:8041", False),
        ("tcp://[fe80::1]:8041", False),
        ("tcp://*:8041", False),
    ],
)
def test_loopback_is_told_from_what_others_can_reach(endpoint: str, expected: bool) -> None:
    assert is_loopback(endpoint) is expected


# -- keys --------------------------------------------------------------------------------------


async def test_the_right_token_is_let_in(rig: Any) -> None:
    rig.receive(token=TOKEN)
    sender = await rig.open("gaze", token=TOKEN)
    sender.offer("gaze", 1, RAY, encoding="ray_f32")
    await rig.eventually(lambda: rig.recorder.taken)
    assert rig.recorder.taken[0].payload == RAY


HUNG_UP = {
    zmq.EVENT_DISCONNECTED,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
}


def with_wrong_token(socket: zmq.Socket[bytes]) -> None:
    access.secure_client(socket, WRONG_TOKEN)


def with_the_servers_key_only(socket: zmq.Socket[bytes]) -> None:
    """It learned the public key of the server, but has no token: ZAP must stop it."""
    access.secure_client(socket, TOKEN)
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()


def without_keys(socket: zmq.Socket[bytes]) -> None:
    """Plain text."""


@pytest.mark.parametrize(
    ("secure", "failures"),
    [
        (with_wrong_token, HUNG_UP),
        (with_the_servers_key_only, {zmq.EVENT_HANDSHAKE_FAILED_AUTH}),
        (without_keys, HUNG_UP),
    ],
)
async def test_others_are_kept_out_before_any_message(
    rig: Any, secure: Any, failures: set[int]
) -> None:
    receiver = rig.receive(token=TOKEN)
    intruder = rig.context.socket(zmq.DEALER)
    intruder.linger = 0
    secure(intruder)
    monitor = intruder.get_monitor_socket()
    rig.sockets += [monitor, intruder]
    intruder.connect(receiver.endpoint)
    intruder.send(b"\xc0")
    events: list[int] = []

    def was_turned_away() -> bool:
        while monitor.poll(0):
            events.append(recv_monitor_message(monitor)["event"])
        return not failures.isdisjoint(events)

    await rig.eventually(was_turned_away)
    await rig.open("gaze", token=TOKEN)  # a whole conversation later ...
    assert not receiver.dropped  # ... nothing of it was even malformed
    assert len(rig.recorder.hellos) == 1
    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in events


async def test_a_sender_with_the_wrong_token_reaches_no_consumer(rig: Any) -> None:
    receiver = rig.receive(token=TOKEN)
    wrong = rig.connect("gaze", device="wrong", token=WRONG_TOKEN)
    wrong.offer("gaze", 1, RAY, encoding="ray_f32")
    right = await rig.open("gaze", device="right", token=TOKEN)
    right.offer("gaze", 1, RAY, encoding="ray_f32")
    await right.finish(close=True, timeout_s=10)
    assert [taken.session for taken in rig.recorder.taken] == ["ses-right"]
    assert (wrong.state, wrong.session, not receiver.dropped) == ("connecting", None, True)
