"""What a receiver does with messages that break the specification: count, answer, go on."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgpack
import pytest
import structlog
import zmq

from keystep_capture.errors import ProtocolError, RefusedError
from keystep_capture.receiver import MAX_PEERS
from keystep_capture.streams import MAX_PAYLOAD_BYTES, STREAMS

pytestmark = pytest.mark.usefixtures("fast_beat")
RAY = bytes(24)


@pytest.fixture(autouse=True)
def _quiet_logs() -> Any:
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
async def client(rig: Any) -> Any:
    """A stranger who was welcome with gaze, hands and video; one good gaze packet is in."""
    rig.receive()
    client = rig.stranger()
    await client.join("hl2", "gaze", "hands", "rgb")
    client.say(client.packet("gaze", 0), RAY)
    await rig.eventually(lambda: rig.recorder.sequences("gaze") == [0])
    return client


async def assert_untouched(rig: Any, client: Any, *, sequence: int = 1, lost: int = 0) -> None:
    """The connection's next good packet is taken, and no bad one was."""
    client.say(client.packet("gaze", sequence), RAY)
    await rig.eventually(lambda: len(rig.recorder.taken) >= 2)
    assert rig.recorder.sequences("gaze") == [0, sequence]
    assert rig.recorder.joined[0].lanes["gaze"].lost == lost


BAD_PACKETS: dict[str, tuple[dict[str, Any], int]] = {
    "other_session": ({"session": "ses-another"}, 24),
    "epoch": ({"epoch": 2}, 24),
    "unknown_stream": ({"stream": "lidar"}, 24),
    "unknown_encoding": ({"encoding": "ray_f64"}, 24),
    "payload_size": ({}, 25),
    "not_finite": ({"pose": [float("nan")] * 16}, 24),
    "stream_not_announced": ({"stream": "head", "encoding": "pose_f32"}, 64),
    "sequence_backwards": ({"sequence": 0}, 24),
    "malformed": ({"sequence": "one"}, 24),
    "header_size": ({"note": "n" * 4096}, 24),
}


@pytest.mark.parametrize("reason", BAD_PACKETS)
async def test_a_bad_packet_is_counted_answered_and_costs_nothing_else(
    rig: Any, client: Any, reason: str
) -> None:
    changes, payload_bytes = BAD_PACKETS[reason]
    refused = await client.refused(client.packet("gaze", 1) | changes, bytes(payload_bytes))
    assert (refused["reason"], refused.get("fatal", False)) == (reason, False)
    assert rig.receivers[0].dropped == {reason: 1}
    assert rig.recorder.joined[0].dropped == {reason: 1}
    await assert_untouched(rig, client)


@pytest.mark.parametrize("size", [1873, MAX_PAYLOAD_BYTES])
async def test_a_payload_above_its_stream_but_below_the_sockets_limit_is_refused(
    rig: Any, client: Any, size: int
) -> None:
    refused = await client.refused(client.packet("hands", 0), bytes(size))
    assert refused["reason"] == "payload_size"
    await assert_untouched(rig, client)


async def test_a_payload_above_the_sockets_limit_costs_the_connection_only(
    rig: Any, client: Any
) -> None:
    other = rig.stranger()
    await other.join("other", "gaze")
    client.say(client.packet("rgb", 0), bytes(2 * MAX_PAYLOAD_BYTES + 1))
    await rig.eventually(lambda: len(rig.recorder.left) == 1)
    assert rig.recorder.left[0].hello.device == "hl2"
    other.say(other.packet("gaze", 0), RAY)
    await rig.eventually(lambda: rig.recorder.sequences("gaze", "ses-other") == [0])
    assert rig.recorder.sequences("rgb") == []


@pytest.mark.parametrize("frames", [1, 3, 100])
async def test_a_packet_of_another_number_of_frames_is_refused(
    rig: Any, client: Any, frames: int
) -> None:
    refused = await client.refused(client.packet("gaze", 1), *[RAY] * (frames - 1))
    assert refused["reason"] == "frames"
    assert rig.receivers[0].dropped == {"frames": 1}
    await assert_untouched(rig, client)


async def test_a_payload_after_another_message_is_refused(rig: Any, client: Any) -> None:
    refused = await client.refused(client.hello("hl2", "gaze"), b"payload")
    assert refused["reason"] == "frames"
    await assert_untouched(rig, client)


async def test_a_lost_packet_is_counted_as_lost(rig: Any, client: Any) -> None:
    await assert_untouched(rig, client, sequence=9, lost=8)
    assert not rig.receivers[0].dropped


async def test_more_packets_than_granted_are_refused(rig: Any, client: Any) -> None:
    rig.recorder.holds = True
    for number in range(33):
        client.say(client.packet("rgb", number), b"unit")
    refused = await client.hear("refused")
    assert refused["reason"] == "no_credit"
    assert rig.recorder.sequences("rgb") == list(range(32))


async def test_another_sessions_packets_touch_neither_session(rig: Any, client: Any) -> None:
    intruder = rig.stranger()
    await intruder.join("intruder", "gaze")
    for number in range(50):
        intruder.say(intruder.packet("gaze", number, session=client.session), RAY)
    await rig.eventually(lambda: rig.receivers[0].dropped["other_session"] == 50)
    assert rig.recorder.joined[1].dropped == {"other_session": 50}
    assert not rig.recorder.joined[0].dropped
    await assert_untouched(rig, client)
    assert rig.recorder.sequences("gaze", "ses-intruder") == []


async def test_garbage_messages_leave_the_receiver_at_work(rig: Any, client: Any) -> None:
    garbage = rig.stranger()
    bad = [
        b"",
        b"\x00",
        b"\xc1" * 50,
        b"\x91" * 4000,
        b"\x82\xa4type\xa5hel\xff\xff\xa8protocol\xa31.0",
    ]
    for header in bad:
        garbage.say(header)
        garbage.say(header, b"payload")
    await rig.eventually(lambda: rig.receivers[0].dropped.total() == 2 * len(bad))
    assert set(rig.receivers[0].dropped) == {"malformed"}
    await assert_untouched(rig, client)


async def test_garbage_that_is_not_even_zeromq_leaves_the_receiver_at_work(
    rig: Any, client: Any
) -> None:
    host, port = rig.receivers[0].endpoint.removeprefix("tcp://").split(":")
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(64),
        b"\xff" * 5000,
        b"\xff\0\0\0\0\0\0\0\x01\x7f\3",
    ):
        with socket.create_connection((host, int(port))) as plain:
            plain.sendall(data)
    await assert_untouched(rig, client)
    assert not rig.receivers[0].dropped


# -- hellos ------------------------------------------------------------------------------------


async def test_a_packet_before_any_hello_asks_for_one(rig: Any) -> None:
    rig.receive()
    stranger = rig.stranger()
    refused = await stranger.refused(stranger.packet("gaze", 0), RAY)
    assert (refused["reason"], refused.get("fatal", False)) == ("hello_required", False)
    stranger.say(
        {
            "type": "guidance_ack",
            "protocol": "1.0",
            "revision": 1,
            "displayed_time_ns": 1,
            "displayed": True,
        }
    )
    await rig.eventually(lambda: rig.receivers[0].dropped["hello_required"] == 2)
    assert rig.recorder.acks == rig.recorder.taken == []


async def test_hellos_said_while_one_is_answered_are_answered_by_the_newest(rig: Any) -> None:
    rig.receive()
    rig.recorder.may_admit.clear()
    stranger = rig.stranger()
    for instance in ("i1", "i2", "i3"):
        stranger.say(stranger.hello("hl2", "gaze", instance=instance))
    await rig.eventually(lambda: len(rig.recorder.hellos) == 1)
    await asyncio.sleep(0.05)
    rig.recorder.may_admit.set()
    await rig.eventually(lambda: len(rig.recorder.joined) == 2)
    assert [hello.instance for hello in rig.recorder.hellos] == ["i1", "i3"]
    assert rig.recorder.joined[-1].epoch == 2


async def test_a_new_hello_gives_no_credit_for_what_still_waits(rig: Any) -> None:
    rig.receive()
    rig.recorder.holds = True
    stranger = rig.stranger()
    window = STREAMS["rgb"].window_packets
    welcome = await stranger.join("hl2", "rgb")
    assert welcome["streams"]["rgb"]["granted"] == window
    for sequence in range(20):
        stranger.say(stranger.packet("rgb", sequence, keyframe=True), b"x")
    await rig.eventually(lambda: len(rig.recorder.taken) == 20)
    welcome = await stranger.join("hl2", "rgb", instance="i2")
    assert welcome["streams"]["rgb"]["granted"] == window - 20
    rig.recorder.work_off()
    credit = await stranger.hear("credit")
    assert credit["granted"] >= window - 4  # credit comes back in halves of the window


async def test_a_stream_that_was_taken_over_can_be_had_again_once_it_is_free(rig: Any) -> None:
    receiver = rig.receive()
    first, second = rig.stranger(), rig.stranger()
    await first.join("hl2", "gaze")
    await second.join("hl2", "gaze")
    assert (await first.refused(first.packet("gaze", 0), bytes(24)))["reason"] == "taken_over"
    (taker,) = [peer for peer in receiver.peers.values() if peer.lanes["gaze"].peer is peer]
    receiver.dismiss(taker)
    answer = await first.refused(first.packet("gaze", 1), bytes(24))
    assert answer["reason"] == "hello_required"
    await first.join("hl2", "gaze")
    first.say(first.packet("gaze", 2), bytes(24))
    await rig.eventually(lambda: rig.recorder.sequences("gaze") == [2])


@pytest.mark.parametrize("wild", [{"sequence": 2**62}, {"device_time_ns": 2**62}])
async def test_a_wild_number_costs_its_own_packet_only(rig: Any, wild: dict[str, int]) -> None:
    rig.receive()
    stranger = rig.stranger()
    await stranger.join("hl2", "gaze")
    stranger.say(stranger.packet("gaze", 0), bytes(24))
    refused = await stranger.refused(stranger.packet("gaze", 1) | wild, bytes(24))
    assert refused["reason"] == "jump"
    stranger.say(stranger.packet("gaze", 2), bytes(24))
    await rig.eventually(lambda: rig.recorder.sequences("gaze") == [0, 2])


async def test_a_first_time_that_cannot_be_does_not_begin_a_stream(rig: Any) -> None:
    rig.receive()
    stranger = rig.stranger()
    await stranger.join("hl2", "gaze")
    wild = stranger.packet("gaze", 0) | {"device_time_ns": 2**62}
    assert (await stranger.refused(wild, bytes(24)))["reason"] == "device_time"
    stranger.say(stranger.packet("gaze", 1), bytes(24))
    await rig.eventually(lambda: rig.recorder.sequences("gaze") == [1])


async def test_after_a_wild_first_time_a_new_epoch_recovers_the_stream(rig: Any) -> None:
    receiver = rig.receive()
    stranger = rig.stranger()
    await stranger.join("hl2", "gaze")
    stranger.say(stranger.packet("gaze", 0) | {"device_time_ns": 10**18}, bytes(24))
    refused = await stranger.refused(stranger.packet("gaze", 1), bytes(24))
    assert refused["reason"] == "jump"
    assert "a new epoch (a hello with a new instance)" in refused["message"]
    stranger.say(stranger.packet("gaze", 2), bytes(24))
    await rig.eventually(lambda: receiver.dropped["jump"] == 2)
    await stranger.join("hl2", "gaze", instance="i2")
    stranger.say(stranger.packet("gaze", 0), bytes(24))
    await rig.eventually(lambda: rig.recorder.sequences("gaze") == [0, 0])


async def test_more_peers_than_the_limit_are_refused(rig: Any) -> None:
    receiver = rig.receive()
    for number in range(MAX_PEERS):
        await rig.stranger().join(f"device-{number}", "gaze")
    one_more = rig.stranger()
    refused = await one_more.refused(one_more.hello("one-more", "gaze"))
    assert (refused["reason"], refused.get("fatal", False)) == ("too_many_peers", False)
    await rig.strangers[0].join("device-0", "gaze")  # who is in may say hello again
    rig.strangers[1].socket.close()
    await rig.eventually(lambda: len(receiver.peers) == MAX_PEERS - 1)
    await one_more.join("one-more", "gaze")


async def test_a_hello_with_a_bad_device_id_reaches_no_consumer(rig: Any) -> None:
    rig.receive()
    stranger = rig.stranger()
    refused = await stranger.refused(stranger.hello("../../etc", "gaze"))
    assert refused["reason"] == "malformed"
    assert rig.recorder.hellos == []


# -- versions ----------------------------------------------------------------------------------


async def test_another_major_version_is_refused_for_good_and_ends_the_sender(rig: Any) -> None:
    rig.receive()
    stranger = rig.stranger()
    refused = await stranger.refused(stranger.hello("hl2", "gaze", protocol="2.0"))
    assert (refused["reason"], refused["fatal"]) == ("protocol_version", True)
    assert "protocol 2.0, this one 1.1" in refused["message"]
    sender, answer = await connected_to_raw_server(rig)
    answer(stranger.raw[-1])
    with pytest.raises(RefusedError, match=r"protocol 2\.0, this one 1\.1"):
        await rig.running(sender)


async def test_a_server_of_another_major_version_ends_the_sender(rig: Any) -> None:
    sender, answer = await connected_to_raw_server(rig)
    answer(msgpack.packb({"type": "welcome", "protocol": "2.1", "granted": {}}))
    with pytest.raises(ProtocolError, match=r"speaks protocol 2\.1, this one 1\.1"):
        await rig.running(sender)
    with pytest.raises(ProtocolError):
        await sender.finish(close=True)


async def test_garbage_from_a_server_is_survived(rig: Any) -> None:
    sender, answer = await connected_to_raw_server(rig)
    welcome = {
        "type": "welcome",
        "protocol": "1.3",
        "session": "s",
        "epoch": 4,
        "heartbeat_s": 1.0,
        "streams": {"gaze": {"granted": 2, "received_sequence": -1}},
        "colour": "green",
    }
    for header in (b"", b"\xc1", b"\xa5\xff\xff", msgpack.packb({"type": "x", "protocol": "1.9"})):
        answer(header)
        answer(header, b"more", b"frames")
    answer(msgpack.packb(welcome))
    await rig.eventually(lambda: sender.has_room("gaze"))
    assert sender.epoch == 4


async def connected_to_raw_server(rig: Any) -> tuple[Any, Any]:
    """A sender that has said hello to a socket of the test's own, and a way to answer it."""
    server = rig.context.socket(zmq.ROUTER)
    server.linger = 0
    server.bind("tcp://127.0.0.1:*")
    sender = rig.connect("gaze", endpoint=server.last_endpoint.decode())
    await rig.eventually(lambda: server.poll(0))
    routing_id, _ = server.recv_multipart()
    rig.sockets.append(server)
    return sender, lambda *frames: server.send_multipart([routing_id, *frames])


# -- answers -----------------------------------------------------------------------------------


async def test_refusals_are_answered_once_a_second_for_each_reason(rig: Any, clock: Any) -> None:
    receiver = rig.receive(clock=clock)
    client = rig.stranger()
    await client.join("hl2", "gaze")
    for count in (2, 4, 6, 8):  # two bad packets each 0.4 s: told at 0 and at 1.2
        client.say(client.packet("gaze", 0, epoch=9), RAY)
        client.say(client.packet("gaze", 0, encoding="raw"), RAY)
        await rig.eventually(lambda n=count: receiver.dropped.total() == n)
        clock.advance(0.4)
    await client.hear("clock_request")
    client.say(client.packet("gaze", 0), RAY)
    await rig.eventually(lambda: rig.recorder.taken)
    reasons = [message["reason"] for message in client.heard if message["type"] == "refused"]
    assert reasons == ["epoch", "unknown_encoding"] * 2
    assert receiver.dropped == {"epoch": 4, "unknown_encoding": 4}


async def test_a_refusal_always_fits_into_a_header(rig: Any) -> None:
    rig.receive()
    rig.recorder.refusal = RefusedError("\N{SNOWMAN}" * 5000, "no")
    sender = rig.connect("gaze")
    with pytest.raises(RefusedError, match="\N{SNOWMAN}"):
        await asyncio.wait_for(rig.running(sender), 10)


async def test_unknown_types_of_a_newer_minor_version_are_counted(rig: Any, client: Any) -> None:
    client.say({"type": "haptics", "protocol": "1.4"})
    await rig.eventually(lambda: rig.receivers[0].dropped == {"unknown_type": 1})
    await assert_untouched(rig, client)


@pytest.mark.parametrize(("epoch", "rate"), [(2, 1.0), (1, 0.0), (1, float("nan")), (1, 1e9)])
async def test_a_device_clock_that_cannot_be_is_refused(
    rig: Any, client: Any, epoch: int, rate: float
) -> None:
    refused = await client.refused(
        {
            "type": "device_clock",
            "protocol": "1.0",
            "epoch": epoch,
            "device_time_ns": 0,
            "bridge_time_ns": 0,
            "uncertainty_ns": 0,
            "rate": rate,
        }
    )
    assert refused["reason"] == "device_clock"
    assert rig.recorder.joined[0].device_clock is None


@pytest.mark.parametrize(
    ("fields", "payload", "reason"),
    [
        ({"type": "command", "command": "done", "command_id": "x y"}, (), "malformed"),
        ({"type": "command", "command": 3, "command_id": "c1"}, (), "malformed"),
        ({"type": "command", "command": "done"}, (), "malformed"),
        ({"type": "command", "command": "d" * 5000, "command_id": "c1"}, (), "header_size"),
        ({"type": "command", "command": "done", "command_id": "c1"}, (b"x",), "frames"),
        ({"type": "picture_request", "picture": "../key"}, (), "malformed"),
        ({"type": "picture_request", "picture": "none"}, (), "unknown_picture"),
    ],
)
async def test_malformed_wishes_of_the_wearer_are_refused(
    rig: Any, client: Any, fields: dict[str, Any], payload: tuple[bytes, ...], reason: str
) -> None:
    refused = await client.refused({"protocol": "1.1", **fields}, *payload)
    assert (refused["reason"], refused.get("fatal", False)) == (reason, False)
    assert rig.recorder.commands == []
    await assert_untouched(rig, client)


async def test_a_command_before_any_hello_asks_for_one(rig: Any) -> None:
    rig.receive()
    stranger = rig.stranger()
    command = {"type": "command", "protocol": "1.1", "command": "done", "command_id": "c1"}
    assert (await stranger.refused(command))["reason"] == "hello_required"
    assert rig.recorder.commands == []
