"""Who may bind where, and who is let in."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any

import pytest
import structlog
import zmq
from zmq.utils.monitor import recv_monitor_message

from keystep_capture import access
from keystep_capture.access import Guard, Member, Members
from keystep_capture.entrance import MAX_CONNECTIONS
from keystep_capture.errors import ConfigError, RefusedError
from keystep_capture.key_files import DeviceKey, KeyPair, make_key_pair
from keystep_capture.receiver import Receiver
from keystep_capture.sockets import is_loopback
from keystep_capture.streams import MAX_PAYLOAD_BYTES

RAY = struct.pack("<6f", 0, 1.6, 0, 0, 0, -1)
SERVER, OTHER_SERVER = make_key_pair(), make_key_pair()


def key_of(name: str, server: KeyPair = SERVER) -> DeviceKey:
    """A new key of a device for a server."""
    return DeviceKey(name=name, role="device", keys=make_key_pair(), server_public=server.public)


def members(*keys: DeviceKey) -> list[Member]:
    return [Member(name=key.name, public=key.keys.public) for key in keys]


def guard_for(*keys: DeviceKey) -> Guard:
    return Guard(keys=SERVER, members=Members(members(*keys)))


@pytest.fixture(autouse=True)
def _quiet_logs() -> Any:
    with structlog.testing.capture_logs():
        yield


# -- binds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:*", "tcp://*:*", "tcp://[::]:*", "tcp://eth0:*"])
async def test_a_bind_off_loopback_needs_keys(rig: Any, bind: str) -> None:
    with pytest.raises(ConfigError, match="off loopback needs keys"):
        rig.receive(bind)


async def test_a_bind_off_loopback_works_with_keys(rig: Any) -> None:
    key = key_of("hl2")
    endpoint = rig.receive("tcp://0.0.0.0:*", guard=guard_for(key)).endpoint
    here = endpoint.replace("0.0.0.0", "127.0.0.1")
    await rig.open("gaze", endpoint=here, key=key)


async def test_a_port_in_use_is_reported_and_leaves_the_first_alone(rig: Any) -> None:
    first = rig.receive()
    for guard in (None, guard_for()):
        with pytest.raises(ConfigError, match="another program uses it"):
            rig.receive(first.endpoint, guard=guard)
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


async def test_a_device_with_its_key_is_let_in(rig: Any) -> None:
    key = key_of("hl2")
    rig.receive(guard=guard_for(key))
    sender = await rig.open("gaze", key=key)
    sender.offer("gaze", 1, RAY, encoding="ray_f32")
    await rig.eventually(lambda: rig.recorder.taken)
    assert rig.recorder.taken[0].payload == RAY


HUNG_UP = {
    zmq.EVENT_DISCONNECTED,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
}


def with_another_servers_key(socket: zmq.Socket[bytes]) -> None:
    access.secure_client(socket, key_of("hl2", OTHER_SERVER))


def with_an_unknown_key(socket: zmq.Socket[bytes]) -> None:
    """It learned the public key of the server, but is not known there: ZAP must stop it."""
    access.secure_client(socket, key_of("hl2"))


def without_keys(socket: zmq.Socket[bytes]) -> None:
    """Plain text."""


def with_a_password(socket: zmq.Socket[bytes]) -> None:
    """ZeroMQ's PLAIN mechanism."""
    socket.plain_username, socket.plain_password = b"hl2", b"secret"


@pytest.mark.parametrize(
    ("secure", "failures"),
    [
        (with_another_servers_key, HUNG_UP),
        (with_an_unknown_key, {zmq.EVENT_HANDSHAKE_FAILED_AUTH}),
        (without_keys, HUNG_UP),
        (with_a_password, HUNG_UP),
    ],
)
async def test_others_are_kept_out_before_any_message(
    rig: Any, secure: Any, failures: set[int]
) -> None:
    key = key_of("hl2")
    receiver = rig.receive(guard=guard_for(key))
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
    await rig.open("gaze", key=key)  # a whole conversation later ...
    assert not receiver.dropped  # ... nothing of it was even malformed
    assert len(rig.recorder.hellos) == 1
    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in events
    assert receiver.entrance.counts["handshake_failed"] > 0


async def test_a_device_cannot_say_hello_for_another(rig: Any) -> None:
    thief, owner = key_of("thief"), key_of("owner")
    receiver = rig.receive(guard=guard_for(thief, owner))
    held = await rig.open("gaze", device="owner", key=owner)
    sender = rig.connect("gaze", device="owner", key=thief)
    with pytest.raises(RefusedError, match="belongs to the device 'thief'") as caught:
        await rig.running(sender)
    assert caught.value.reason == "other_device"
    held.offer("gaze", 1, RAY, encoding="ray_f32")
    await held.finish(close=False)
    await rig.eventually(lambda: len(rig.recorder.taken) == 1)
    assert [hello.device for hello in rig.recorder.hellos] == ["owner"]
    assert receiver.dropped["hello_refused"] == 1


async def test_a_routing_id_gives_no_part_in_another_devices_session(rig: Any) -> None:
    """Its first owner lost the connection; the receiver does not know that yet."""
    owner, thief = key_of("owner"), key_of("thief")
    receiver = rig.receive(guard=guard_for(owner, thief))
    first = rig.stranger(key=owner, routing_id=b"chosen")
    await first.join("owner", "gaze")
    session, epoch = first.session, first.epoch
    first.socket.close()
    await rig.eventually(lambda: not receiver.entrance.connection_count)
    second = rig.stranger(key=thief, routing_id=b"chosen")
    second.session, second.epoch = session, epoch
    refused = await second.refused(second.packet("gaze", 0), RAY)
    assert refused["reason"] == "hello_required"
    assert not receiver.peers  # nothing of the owner's is sent there either
    assert not rig.recorder.taken


async def test_a_revoked_device_is_cut_off_on_its_next_message(rig: Any) -> None:
    bad, good = key_of("bad"), key_of("good")
    guard = guard_for(bad, good)
    receiver = rig.receive(guard=guard)
    cut = await rig.open("gaze", device="bad", key=bad)
    kept = await rig.open("gaze", device="good", key=good)
    cut.offer("gaze", 1, RAY, encoding="ray_f32")
    await rig.eventually(lambda: rig.recorder.taken)
    told, guard.members.on_change = guard.members.on_change, []  # only the message itself tells
    guard.members.replace(members(good))
    cut.offer("gaze", 2, RAY, encoding="ray_f32")
    with pytest.raises(RefusedError, match="was revoked"):
        await rig.running(cut)
    kept.offer("gaze", 1, RAY, encoding="ray_f32")
    await kept.finish(close=True)
    assert [taken.session for taken in rig.recorder.taken] == ["ses-bad", "ses-good"]
    assert receiver.dropped["revoked"] > 0
    guard.members.on_change = told


async def test_a_silent_revoked_device_is_hung_up_on(rig: Any) -> None:
    key = key_of("bad")
    guard = guard_for(key)
    receiver = rig.receive(guard=guard)
    sender = await rig.open("gaze", device="bad", key=key)
    guard.members.replace([])
    with pytest.raises(RefusedError, match="was revoked"):
        await rig.running(sender)
    await rig.eventually(lambda: not receiver.entrance.connection_count)
    assert not receiver.peers


async def test_a_new_key_of_a_device_does_not_revive_the_old_one(rig: Any) -> None:
    old, new = key_of("hl2"), key_of("hl2")
    guard = guard_for(old)
    rig.receive(guard=guard)
    sender = await rig.open("gaze", key=old)
    guard.members.replace(members(new))
    with pytest.raises(RefusedError, match="was revoked"):
        await rig.running(sender)
    await rig.open("gaze", key=new)


# -- connections -------------------------------------------------------------------------------


NULL_GREETING = (
    b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 32)
    + b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
)  # fmt: skip
"""ZMTP 3.0: signature, version, mechanism, filler; then the handshake of a DEALER."""


def dial(receiver: Receiver) -> socket.socket:
    """A TCP connection that has said nothing yet."""
    host, port = receiver.endpoint.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


async def test_half_open_connections_make_room_for_a_device(rig: Any) -> None:
    key = key_of("hl2")
    receiver = rig.receive(guard=guard_for(key))
    first = await rig.open("gaze", key=key)
    silent = [dial(receiver) for _ in range(2 * MAX_CONNECTIONS)]
    counts = receiver.entrance.counts
    await rig.eventually(lambda: counts["accepted"] == len(silent) + 1)
    assert receiver.entrance.connection_count <= MAX_CONNECTIONS
    assert counts["limit"] >= len(silent) + 1 - MAX_CONNECTIONS
    second = await rig.open("head", key=key, instance="i1")
    for sender in (first, second):
        assert sender.state == "open"
    for connection in silent:
        connection.close()


async def test_a_message_without_end_is_cut_off(rig: Any) -> None:
    receiver = rig.receive()
    steady = await rig.open("gaze")
    with dial(receiver) as stranger:
        stranger.sendall(NULL_GREETING)
        part = b"\x03" + (2**20).to_bytes(8, "big") + bytes(2**20)  # a long frame, more to come
        loop = asyncio.get_running_loop()
        stranger.setblocking(False)
        sent_mib = 0
        with contextlib.suppress(ConnectionError):
            while sent_mib < 10_000:
                await loop.sock_sendall(stranger, part)
                sent_mib += 1
        assert sent_mib < 10_000
    await rig.eventually(lambda: receiver.entrance.counts["unfinished"] == 1)
    steady.offer("gaze", 1, RAY, encoding="ray_f32")
    await steady.finish(close=True)
    assert rig.recorder.sequences("gaze") == [0]


async def test_a_frame_too_large_for_libzmq_shows_as_a_connection_that_ended(rig: Any) -> None:
    receiver = rig.receive()
    stranger = rig.stranger()
    await stranger.join("hl2", "rgb")
    stranger.say(stranger.packet("rgb", 0, width=1, height=1), bytes(2 * MAX_PAYLOAD_BYTES + 1))
    await rig.eventually(lambda: receiver.entrance.counts["ended"] >= 1)
    assert not rig.recorder.taken
