"""Sender and receiver over real sockets: a session's life, credit, outages, guidance."""

from __future__ import annotations

import asyncio
import gc
import os
import struct
import warnings
from typing import Any

import pytest
import structlog
import zmq

from keystep_capture import wire
from keystep_capture.errors import RefusedError, StateError, WireError
from keystep_capture.sender import Callbacks

pytestmark = pytest.mark.usefixtures("fast_beat")


@pytest.fixture(autouse=True)
def _quiet_logs() -> Any:
    with structlog.testing.capture_logs():
        yield


RAY = struct.pack("<6f", 0, 1.6, 0, 0, 0, -1)


def offer_gaze(sender: Any, count: int, *, first: int = 0) -> None:
    for number in range(first, first + count):
        assert sender.offer(
            "gaze", number, struct.pack("<6f", number, 0, 0, 0, 0, 1), encoding="ray_f32"
        )


def offer_video(sender: Any, count: int, *, group: int = 10, size: int = 300) -> list[bool]:
    """Offer access units, a key frame in each `group`; which were taken."""
    return [
        sender.offer("rgb", k, bytes([k % 251]) * size, encoding="h264", keyframe=k % group == 0)
        for k in range(count)
    ]


# -- hello and packets -------------------------------------------------------------------------


async def test_a_hello_is_welcomed_with_session_epoch_and_credit(rig: Any) -> None:
    rig.receive()
    welcomes: list[wire.Welcome] = []
    sender = await rig.open(
        "rgb", "gaze", callbacks=Callbacks(on_session=welcomes.append), source={"task": "bike"}
    )
    assert (sender.session, sender.epoch) == ("ses-hl2", 1)
    assert welcomes[0].streams == {
        name: wire.StreamGrant(granted=granted, received_sequence=-1, acknowledged_sequence=-1)
        for name, granted in (("rgb", 32), ("gaze", 512))
    }
    (peer,) = rig.recorder.joined
    assert (peer.hello.task, peer.hello.streams) == ("bike", ["rgb", "gaze"])


async def test_packets_arrive_in_order_with_their_payload_intact(rig: Any) -> None:
    rig.receive()
    sender = await rig.open("rgb", "gaze")
    sizes = [1, 16 * 1024, 16 * 1024 + 1, 32 * 1024, 100_000, 7, 4 * 1024 * 1024]
    payloads = [os.urandom(size) for size in sizes]
    for number, payload in enumerate(payloads):
        assert sender.offer("rgb", number, payload, encoding="jpeg", width=64, height=48)
    await rig.eventually(lambda: len(rig.recorder.taken) == len(sizes))
    assert [taken.payload for taken in rig.recorder.taken] == payloads
    assert rig.recorder.sequences("rgb") == list(range(len(sizes)))


async def test_every_field_of_a_packet_arrives(rig: Any, clock: Any) -> None:
    rig.receive()
    sender = await rig.open("rgb", clock=clock)
    fields: dict[str, Any] = {
        "encoding": "h264",
        "keyframe": True,
        "width": 640,
        "height": 360,
        "intrinsics": (500.0, 501.0, 320.0, 180.0),
        "pose": [float(k) for k in range(16)],
        "frame_idx": 77,
    }
    sender.offer("rgb", 123, memoryview(bytearray(b"unit")), **fields)
    await rig.eventually(lambda: rig.recorder.taken)
    header = rig.recorder.taken[0].header
    assert {name: getattr(header, name) for name in fields} == fields
    assert (header.device_time_ns, header.send_time_ns) == (123, clock())
    assert rig.recorder.taken[0].payload == b"unit"


async def test_a_sensor_that_had_nothing_says_so_without_payload(rig: Any) -> None:
    rig.receive()
    sender = await rig.open("hands")
    sender.offer("hands", 5, b"", encoding="joints_f32", valid=0)
    await rig.eventually(lambda: rig.recorder.taken)
    assert (rig.recorder.taken[0].header.valid, rig.recorder.taken[0].payload) == (0, b"")


async def test_several_senders_share_a_session(rig: Any) -> None:
    rig.receive()
    video = await rig.open("rgb")
    eyes = await rig.open("gaze", source={"session": "ses-hl2"})
    assert video.session == eyes.session
    offer_gaze(eyes, 3)
    offer_video(video, 3)
    await rig.eventually(lambda: len(rig.recorder.taken) == 6)
    assert rig.recorder.sequences("gaze") == rig.recorder.sequences("rgb") == [0, 1, 2]


async def test_another_devices_session_is_refused_for_good(rig: Any) -> None:
    rig.receive()
    await rig.open("gaze", device="a")
    intruder = rig.connect("gaze", device="b", source={"session": "ses-a"})
    with pytest.raises(RefusedError, match="belongs to a"):
        await rig.running(intruder)
    assert list(rig.receivers[0].dropped.elements()) == ["hello_refused"]


async def test_a_refusal_that_is_not_final_lets_the_client_try_again(rig: Any, clock: Any) -> None:
    rig.receive()
    rig.recorder.refusal = WireError("the server is starting", "not_yet")
    refusals: list[wire.Refused] = []
    sender = rig.connect("gaze", callbacks=Callbacks(on_refused=refusals.append), clock=clock)
    await rig.eventually(lambda: refusals)
    assert (refusals[0].reason, refusals[0].fatal) == ("not_yet", False)
    rig.recorder.refusal = None
    clock.advance(6)
    await rig.eventually(lambda: sender.state == "open")


async def test_an_endpoint_that_is_none_is_refused_at_once_to_all_who_wait(rig: Any) -> None:
    sender = rig.connect("gaze", endpoint="nonsense")
    with pytest.raises(RefusedError, match=r"expected e\.g\. tcp://"):
        await rig.running(sender)
    with pytest.raises(RefusedError):
        await sender.room("gaze")


# -- credit ------------------------------------------------------------------------------------


async def test_video_out_of_credit_is_dropped_up_to_the_next_key_frame(rig: Any) -> None:
    rig.receive()
    rig.recorder.holds = True
    sender = await rig.open("rgb")
    taken = offer_video(sender, 45)
    assert taken == [True] * 32 + [False] * 13
    await rig.eventually(lambda: len(rig.recorder.taken) == 32)
    rig.recorder.work_off()
    await rig.eventually(lambda: sender.has_room("rgb"))
    assert not sender.offer("rgb", 45, b"p", encoding="h264")
    assert sender.offer("rgb", 46, b"k", encoding="h264", keyframe=True)
    await rig.eventually(lambda: len(rig.recorder.taken) == 33)
    assert rig.recorder.sequences("rgb")[-1] == 46
    (lane,) = rig.recorder.joined[0].lanes.values()
    assert (lane.lost, sender.dropped(), sender.sent()) == (14, {"rgb": 14}, {"rgb": 33})


async def test_kept_packets_wait_for_credit_and_arrive_all(rig: Any) -> None:
    rig.receive()
    rig.recorder.holds = True
    sender = await rig.open("gaze")
    offer_gaze(sender, 1200)
    await rig.eventually(lambda: len(rig.recorder.taken) == 512)
    assert not sender.has_room("gaze")
    assert sender.sent() == {"gaze": 512}
    rig.recorder.holds = False
    rig.recorder.work_off()
    await rig.eventually(lambda: len(rig.recorder.taken) == 1200)
    assert rig.recorder.sequences("gaze") == list(range(1200))
    assert [struct.unpack("<6f", taken.payload)[0] for taken in rig.recorder.taken] == list(
        range(1200)
    )
    assert sender.dropped() == {"gaze": 0}


async def test_credit_of_a_slow_consumer_comes_with_the_heartbeat(rig: Any) -> None:
    rig.receive()
    rig.recorder.holds = True
    sender = await rig.open("rgb")
    offer_video(sender, 32)
    await rig.eventually(lambda: len(rig.recorder.taken) == 32)
    rig.recorder.receiver.consumed(rig.recorder.unconsumed.pop())  # far from half a window
    await rig.eventually(lambda: sender.has_room("rgb"))


async def test_waiting_for_room_loses_nothing_at_any_speed(rig: Any) -> None:
    rig.receive()
    sender = await rig.open("rgb", source={"replay": True})
    for number in range(300):
        await sender.room("rgb")
        assert sender.offer("rgb", number, b"x" * 50, encoding="h264")
    await sender.finish(close=True)
    assert rig.recorder.sequences("rgb") == list(range(300))
    assert sender.dropped() == {"rgb": 0}


async def test_dropped_packets_are_told_with_the_heartbeat(rig: Any) -> None:
    rig.receive()
    rig.recorder.holds = True
    sender = await rig.open("rgb")
    offer_video(sender, 40)
    (peer,) = rig.recorder.joined
    await rig.eventually(lambda: peer.sender_dropped == {"rgb": 8})


# -- outages -----------------------------------------------------------------------------------


async def test_a_session_goes_on_after_the_server_restarted(rig: Any) -> None:
    rig.receive()
    sender = await rig.open("gaze")
    offer_gaze(sender, 40)
    await rig.eventually(lambda: len(rig.recorder.taken) == 40)
    endpoint = await rig.stop_receiving()
    offer_gaze(sender, 40, first=40)  # into the void
    receiver = rig.receive(endpoint)
    await rig.eventually(lambda: len(rig.recorder.taken) == 80)
    offer_gaze(sender, 40, first=80)
    await rig.eventually(lambda: len(rig.recorder.taken) == 120)
    assert rig.recorder.sequences("gaze") == list(range(120))
    assert [hello.session for hello in rig.recorder.hellos] == [None, "ses-hl2"]
    assert not receiver.dropped  # nothing stale came before the hello
    assert sender.dropped() == {"gaze": 0}


async def test_a_replay_loses_no_picture_when_the_server_restarts(rig: Any) -> None:
    rig.receive()
    sender = await rig.open("rgb", source={"replay": True})
    offer_video(sender, 5)
    await rig.eventually(lambda: len(rig.recorder.taken) == 5)
    endpoint = await rig.stop_receiving()
    offer_video(sender, 5)
    rig.receive(endpoint)
    await rig.eventually(lambda: len(rig.recorder.taken) == 10)
    assert rig.recorder.sequences("rgb") == list(range(10))


async def test_a_client_that_hears_nothing_dials_again(rig: Any, clock: Any) -> None:
    with rig.context.socket(zmq.ROUTER) as mute:
        mute.bind("tcp://127.0.0.1:*")
        rig.connect("gaze", endpoint=mute.last_endpoint.decode(), clock=clock)
        await rig.eventually(lambda: mute.poll(0))
        first = mute.recv_multipart()
        clock.advance(5.1)
        await rig.eventually(lambda: mute.poll(0))
        second = mute.recv_multipart()
    assert first[1] == second[1]  # the same hello ...
    assert first[0] != second[0]  # ... on a new connection


async def test_a_peer_that_says_nothing_is_marked_lost_and_its_session_waits(
    rig: Any, clock: Any
) -> None:
    receiver = rig.receive(clock=clock)
    client = rig.stranger()
    await client.join("hl2", "gaze")
    clock.advance(4.9)
    await client.hear("clock_request")
    assert rig.recorder.left == []
    clock.advance(0.2)
    await rig.eventually(lambda: rig.recorder.left == rig.recorder.joined)
    assert not receiver.peers
    refused = await client.refused(client.packet("gaze", 0), RAY)
    assert refused["reason"] == "hello_required"
    await client.join("hl2", "gaze", session="ses-hl2")
    client.say(client.packet("gaze", 0), RAY)
    await rig.eventually(lambda: rig.recorder.sequences("gaze", "ses-hl2") == [0])


async def test_packets_are_a_sign_of_life(rig: Any, clock: Any) -> None:
    rig.receive(clock=clock)
    client = rig.stranger()
    await client.join("hl2", "gaze")
    for number in range(4):
        client.say(client.packet("gaze", number), RAY)
        await rig.eventually(lambda n=number: len(rig.recorder.taken) == n + 1)
        clock.advance(4)
        await client.hear("clock_request")
    assert rig.recorder.left == []


async def test_a_peer_that_goes_before_its_welcome_joins_and_leaves(rig: Any) -> None:
    receiver = rig.receive()
    rig.recorder.may_admit.clear()
    client = rig.stranger()
    client.say(client.hello("hl2", "gaze"))
    await rig.eventually(lambda: rig.recorder.hellos)
    client.socket.close()
    await asyncio.sleep(0.05)
    rig.recorder.may_admit.set()
    await rig.eventually(lambda: rig.recorder.left)
    assert rig.recorder.left == rig.recorder.joined
    assert not rig.recorder.here  # in this order
    assert not receiver.peers


async def test_the_newest_connection_takes_a_stream_over(rig: Any) -> None:
    receiver = rig.receive()
    old, new = rig.stranger(), rig.stranger()
    await old.join("hl2", "gaze", "head")
    old.say(old.packet("gaze", 0), RAY)
    await rig.eventually(lambda: rig.recorder.sequences("gaze") == [0])
    welcome = await new.join("hl2", "gaze")
    assert welcome["streams"]["gaze"] == {
        "granted": 512,
        "received_sequence": 0,
        "acknowledged_sequence": -1,
    }
    refused = await old.refused(old.packet("gaze", 1), RAY)
    assert (refused["reason"], refused.get("fatal", False)) == ("taken_over", False)
    new.say(new.packet("gaze", 1, device_time_ns=7), RAY)
    old.say(old.packet("head", 0), bytes(64))  # still its own
    await rig.eventually(lambda: len(rig.recorder.taken) == 3)
    assert rig.recorder.sequences("gaze") == [0, 1]
    assert receiver.dropped == {"taken_over": 1}


# -- epochs ------------------------------------------------------------------------------------


async def test_a_restarted_headset_counts_anew_in_a_new_epoch(rig: Any) -> None:
    receiver = rig.receive()
    sender = await rig.open("gaze")
    offer_gaze(sender, 5)
    await rig.eventually(lambda: len(rig.recorder.taken) == 5)
    sender.restart("i2")
    offer_gaze(sender, 3)  # before the welcome, and of the new epoch already
    await rig.eventually(lambda: len(rig.recorder.taken) == 8)
    assert sender.epoch == 2
    assert [(t.header.epoch, t.header.sequence) for t in rig.recorder.taken[5:]] == [
        (2, 0),
        (2, 1),
        (2, 2),
    ]
    assert not receiver.dropped


async def test_a_restart_while_a_hello_is_answered_is_not_mistaken(rig: Any) -> None:
    rig.receive()
    rig.recorder.may_admit.clear()
    sender = rig.connect("gaze")
    await rig.eventually(lambda: rig.recorder.hellos)
    sender.restart("i2")
    offer_gaze(sender, 2)
    rig.recorder.may_admit.set()
    await rig.eventually(lambda: len(rig.recorder.taken) == 2)
    assert [hello.instance for hello in rig.recorder.hellos] == ["i1", "i2"]
    assert {taken.header.epoch for taken in rig.recorder.taken} == {2}


async def test_no_packet_is_sent_between_a_restart_and_its_welcome(rig: Any) -> None:
    receiver = rig.receive()
    sender = await rig.open("rgb")
    rig.recorder.may_admit.clear()
    sender.restart("i2")
    assert not sender.offer("rgb", 0, b"k", encoding="h264", keyframe=True)
    (peer,) = rig.recorder.joined
    asked = peer.next_request_id
    await rig.eventually(lambda: peer.next_request_id > asked + 2)
    rig.recorder.may_admit.set()
    await rig.eventually(lambda: sender.has_room("rgb"))
    assert not receiver.dropped
    assert rig.recorder.taken == []


# -- clocks and guidance -----------------------------------------------------------------------


async def test_both_hops_of_the_clock_are_measured(rig: Any) -> None:
    server_ns, bridge_ns = 5_000_000_000, 70_000_000_000
    receiver = rig.receive(clock=lambda: server_ns)
    sender = await rig.open("gaze", clock=lambda: bridge_ns)
    (peer,) = rig.recorder.joined
    await rig.eventually(lambda: peer.clock.reading(server_ns))
    assert peer.device_reading(server_ns) is None
    sender.tell_device_clock(
        device_time_ns=900, bridge_time_ns=bridge_ns, uncertainty_ns=300, rate=1.0
    )
    await rig.eventually(lambda: peer.device_reading(server_ns))
    reading = peer.device_reading(server_ns)
    assert reading.to_local(1_900) == server_ns + 1_000
    assert 300 <= reading.uncertainty_ns <= 305
    assert not receiver.dropped


async def test_guidance_arrives_and_is_acknowledged(rig: Any, clock: Any) -> None:
    receiver = rig.receive()
    shown: list[wire.Guidance] = []
    sender = await rig.open("gaze", callbacks=Callbacks(on_guidance=shown.append), clock=clock)
    guidance = wire.Guidance(
        protocol=wire.PROTOCOL,
        revision=4,
        severity="info",
        current_step=wire.StepName(id=2, title="Fit the wheel"),
        next_step=None,
        text="Fit the wheel – Rad einsetzen",
        progress=(2, 11),
        device_time_ns=99,
    )
    assert receiver.send(rig.recorder.joined[0], guidance)
    await rig.eventually(lambda: shown == [guidance])
    sender.acknowledge_guidance(4, displayed=True)
    await rig.eventually(lambda: rig.recorder.acks)
    (ack,) = rig.recorder.acks
    assert (ack.revision, ack.displayed, ack.displayed_time_ns) == (4, True, clock())


async def test_a_source_acknowledges_with_the_time_of_its_display_or_the_reason(rig: Any) -> None:
    rig.receive()
    sender = await rig.open("gaze")
    sender.acknowledge_guidance(4, displayed=True, displayed_time_ns=17)
    sender.acknowledge_guidance(4, displayed=False, reason="lost")
    await rig.eventually(lambda: len(rig.recorder.acks) == 2)
    shown, lost = rig.recorder.acks
    assert (shown.displayed, shown.displayed_time_ns, shown.reason) == (True, 17, "")
    assert (lost.displayed, lost.reason) == (False, "lost")


async def test_a_picture_of_the_largest_size_comes_when_asked_for(rig: Any) -> None:
    rig.receive()
    image = bytes(range(256)) * 1024
    rig.recorder.pictures["wheel"] = ("jpeg", image)
    taken: list[tuple[wire.Picture, bytes]] = []
    refused: list[wire.Refused] = []
    callbacks = Callbacks(
        on_picture=lambda message, payload: taken.append((message, payload)),
        on_refused=refused.append,
    )
    sender = await rig.open("gaze", callbacks=callbacks)
    sender.request_picture("nothing")
    await rig.eventually(lambda: refused)
    assert (refused[0].reason, refused[0].fatal) == ("unknown_picture", False)
    sender.request_picture("wheel")
    await rig.eventually(lambda: taken)
    ((message, payload),) = taken
    assert (message.picture, message.encoding, payload) == ("wheel", "jpeg", image)


async def test_one_picture_is_under_way_at_a_time(rig: Any) -> None:
    receiver = rig.receive()
    rig.recorder.pictures["wheel"] = ("png", b"x")
    taken: list[bytes] = []
    callbacks = Callbacks(on_picture=lambda _, payload: taken.append(payload))
    sender = await rig.open("gaze", callbacks=callbacks)
    for _ in range(50):
        sender.request_picture("wheel")
    await rig.eventually(lambda: len(taken) + receiver.dropped["picture_pace"] == 50)
    assert 1 <= len(taken) < 10
    asked, before = rig.recorder.joined[0].next_request_id, len(taken)
    await rig.eventually(lambda: rig.recorder.joined[0].next_request_id > asked + 1)
    sender.request_picture("wheel")
    await rig.eventually(lambda: len(taken) > before)


async def test_a_command_and_its_result_cross_the_wire(rig: Any) -> None:
    receiver = rig.receive()
    results: list[wire.CommandResult] = []
    sender = await rig.open("gaze", callbacks=Callbacks(on_command_result=results.append))
    sender.command("done", "c1")
    await rig.eventually(lambda: rig.recorder.commands)
    (command,) = rig.recorder.commands
    assert (command.command, command.command_id) == ("done", "c1")
    result = wire.CommandResult(
        protocol=wire.PROTOCOL, command_id="c1", accepted=True, text="Done: the wheel."
    )
    assert receiver.send(rig.recorder.joined[0], result)
    await rig.eventually(lambda: results == [result])


# -- the end -----------------------------------------------------------------------------------


async def test_a_source_sends_all_it_holds_and_has_the_session_closed(rig: Any) -> None:
    rig.receive()
    sender = rig.connect("gaze", "head")
    offer_gaze(sender, 700)  # before the welcome, and more than a window
    await sender.finish(close=True, timeout_s=10)
    await rig.running(sender)
    assert sender.state == "closed"
    assert rig.recorder.sequences("gaze") == list(range(700))
    (finished,) = rig.recorder.finished
    assert finished.last_sequences == {"gaze": 699, "head": -1}
    with pytest.raises(StateError, match="closed by the server"):
        await sender.room("gaze")


async def test_a_source_may_finish_first_and_close_later(rig: Any) -> None:
    rig.receive()
    sender = await rig.open("gaze")
    await sender.finish(close=False, timeout_s=10)
    assert sender.state == "finished"
    await sender.finish(close=True, timeout_s=10)
    await rig.eventually(lambda: len(rig.recorder.finished) == 2)
    assert [finished.close for finished in rig.recorder.finished] == [False, True]


async def test_the_server_may_ask_for_the_end(rig: Any) -> None:
    receiver = rig.receive()
    reasons: list[wire.Finish] = []
    sender = await rig.open("gaze", callbacks=Callbacks(on_finish=reasons.append))
    offer_gaze(sender, 3)
    (peer,) = rig.recorder.joined
    receiver.send(peer, wire.Finish(protocol=wire.PROTOCOL, reason="closed by REST"))
    await rig.eventually(lambda: rig.recorder.finished)
    assert (reasons[0].reason, rig.recorder.finished[0].close) == ("closed by REST", False)
    assert rig.recorder.finished[0].last_sequences == {"gaze": 2}
    receiver.dismiss(peer)
    await rig.running(sender)
    assert peer.finished
    assert rig.recorder.left == [peer]


async def test_a_server_that_does_not_take_all_is_reported(rig: Any) -> None:
    rig.receive()
    rig.recorder.holds = True
    sender = await rig.open("gaze")
    offer_gaze(sender, 513)
    with pytest.raises(StateError, match="did not finish the session"):
        await sender.finish(close=True, timeout_s=0.05)


async def test_a_closed_receiver_takes_credit_and_messages_without_harm(rig: Any) -> None:
    receiver = rig.receive()
    await rig.open("gaze")
    (peer,) = rig.recorder.joined
    await rig.stop_receiving()
    receiver.consumed(peer.lanes["gaze"])
    assert not receiver.send(peer, wire.Closed(protocol=wire.PROTOCOL, session="s"))


async def test_links_leave_no_socket_thread_or_warning_behind(rig: Any) -> None:
    async def live_and_die() -> None:
        rig.receive()
        sender = await rig.open("rgb")
        offer_video(sender, 5, size=100_000)
        await sender.finish(close=True, timeout_s=10)
        await rig.running(sender)
        rig.senders.clear()
        await rig.stop_receiving()

    await live_and_die()  # what Python and ZeroMQ keep from the first time on
    before = (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            await live_and_die()
        gc.collect()
    assert (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before
    assert not [str(warning.message) for warning in caught]
