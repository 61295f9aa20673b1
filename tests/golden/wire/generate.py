"""Write the wire's reference messages with the package msgpack, without keystep's own codec.

Usage: python generate.py
"""

import json
import struct
from pathlib import Path
from typing import Any

import msgpack

PROTOCOL = "1.1"
DEVICE_TIME_NS = 8_123_456_789_012
PACKET = {
    "type": "packet",
    "protocol": PROTOCOL,
    "session": "ses_01jq7v8k3n4m5p6q7r8s9t0v1w",
    "epoch": 1,
    "stream": "rgb",
    "sequence": 0,
    "device_time_ns": DEVICE_TIME_NS,
    "send_time_ns": 512_000_000,
    "encoding": "h264",
}
POSE = [1.0, 0.0, 0.0, 0.5, 0.0, 1.0, 0.0, 1.6, 0.0, 0.0, 1.0, -0.25, 0.0, 0.0, 0.0, 1.0]
ACCESS_UNIT = bytes.fromhex("0000000167640028ac0000000168ee3cb0000000016588840021ff")
PICTURE_ID = "5f2b7c0d9e8a41c3b6d7e8f90a1b2c3d"
PNG = bytes.fromhex(  # one black pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a4944415478da6360000000020001e527defc0000000049454e44ae426082"
)
RAY = struct.pack("<6f", 0.0, 1.6, 0.0, 0.0, 0.0, -1.0)
DETECTIONS = struct.pack("<12d", 3, 0.9, 10, 20, 30, 40, 7, 0.25, 0.5, 1.5, 2.5, 3.5)
HELLO = {
    "type": "hello",
    "protocol": PROTOCOL,
    "device": "hololens-2.lab_4",
    "client": "keystep-hololens 0.1.0",
    "instance": "8f14e45f",
    "kind": "guided",
    "streams": ["rgb", "gaze", "head", "hands"],
}

CLIENT: list[tuple[str, dict[str, Any], bytes | None]] = [
    (
        "rgb key frame with intrinsics and pose",
        PACKET
        | {
            "keyframe": True,
            "width": 640,
            "height": 360,
            "intrinsics": [500.25, 500.5, 320.0, 180.0],
            "pose": POSE,
        },
        ACCESS_UNIT,
    ),
    ("gaze ray", PACKET | {"stream": "gaze", "sequence": 70_000, "encoding": "ray_f32"}, RAY),
    (
        "hands not seen",
        PACKET | {"stream": "hands", "sequence": 255, "encoding": "joints_f32", "valid": 0},
        b"",
    ),
    (
        "detections of one frame",
        PACKET
        | {"stream": "detections", "sequence": 1, "encoding": "detections_f64", "frame_idx": 12},
        DETECTIONS,
    ),
    (
        "long-throw depth as a 16-bit image",
        PACKET
        | {
            "stream": "depth",
            "sequence": 3,
            "encoding": "u16",
            "width": 3,
            "height": 2,
            "pose": POSE,
            "depth_unit_m": 0.001,
        },
        struct.pack("<6H", 0, 801, 802, 65535, 803, 0),
    ),
    (
        "key frame of a grey camera that lies on its side, HEVC",
        PACKET
        | {
            "stream": "vlc_left_front",
            "encoding": "hevc",
            "keyframe": True,
            "width": 640,
            "height": 480,
            "upright_turns": 1,
        },
        bytes.fromhex("0000000140010c01ffff0000000142010101000000014401c172b4620000000126"),
    ),
    (
        "two gyroscope samples",
        PACKET | {"stream": "gyroscope", "sequence": 4, "encoding": "samples_f32", "pose": POSE},
        struct.pack("<10f", 0.0, 0.5, -0.25, 0.0, 35.0, 0.125, 0.5, -0.25, 0.125, 35.0),
    ),
    (
        "eyes of which the right one is not seen",
        PACKET | {"stream": "eye_tracking", "encoding": "eyes_f32", "valid": 67},
        struct.pack("<21f", *(0, 1.5, 0, 0, 0, -1) * 2, *[0] * 9),
    ),
    (
        "calibration of a camera of two pixels",
        PACKET
        | {
            "stream": "calibration",
            "encoding": "rays_f32",
            "width": 2,
            "height": 1,
            "depth_unit_m": 0.001,
            "calibrates": "depth",
            "rig_from_sensor": POSE,
        },
        struct.pack("<4f", -0.5, 0.25, 0.5, 0.25),
    ),
    ("hello for a new session", HELLO, None),
    (
        "hello of a replay",
        HELLO
        | {
            "session": PACKET["session"],
            "task": "Aufgabe für Anfänger",
            "procedure": "toy-bike",
            "replay": True,
            "time_scale": 2.0,
        },
        None,
    ),
    (
        "hello that asks for a method (1.1)",
        HELLO | {"streams": ["detections"], "procedure": "toy-bike", "method": "tracker"},
        None,
    ),
    (
        "hello of a client that speaks 1.0",
        HELLO | {"protocol": "1.0"},
        None,
    ),
    (
        "clock_reply",
        {
            "type": "clock_reply",
            "protocol": PROTOCOL,
            "request_id": 7,
            "server_time_ns": 1_000_000_000,
            "receive_time_ns": -5,
            "reply_time_ns": 2**40,
            "dropped": {"rgb": 12},
        },
        None,
    ),
    (
        "device_clock",
        {
            "type": "device_clock",
            "protocol": PROTOCOL,
            "epoch": 1,
            "device_time_ns": DEVICE_TIME_NS,
            "bridge_time_ns": 512_000_000,
            "uncertainty_ns": 850_000,
            "rate": 1.0,
        },
        None,
    ),
    (
        "guidance_ack",
        {
            "type": "guidance_ack",
            "protocol": PROTOCOL,
            "revision": 3,
            "displayed_time_ns": 700_000_000,
            "displayed": True,
        },
        None,
    ),
    (
        "guidance_ack of a headset without a scene",
        {
            "type": "guidance_ack",
            "protocol": PROTOCOL,
            "revision": 3,
            "displayed_time_ns": 700_000_000,
            "displayed": False,
            "reason": "no_scene",
        },
        None,
    ),
    (
        "picture_request",
        {"type": "picture_request", "protocol": PROTOCOL, "picture": PICTURE_ID},
        None,
    ),
    (
        "command",
        {"type": "command", "protocol": PROTOCOL, "command": "done", "command_id": "c0ffee01"},
        None,
    ),
    (
        "finished",
        {
            "type": "finished",
            "protocol": PROTOCOL,
            "last_sequences": {"rgb": 899, "gaze": -1},
            "close": True,
        },
        None,
    ),
]

SERVER: list[tuple[str, dict[str, Any], bytes | None]] = [
    (
        "welcome",
        {
            "type": "welcome",
            "protocol": PROTOCOL,
            "session": PACKET["session"],
            "epoch": 1,
            "heartbeat_s": 1.0,
            "streams": {"rgb": {"granted": 32, "received_sequence": -1}},
        },
        None,
    ),
    (
        "refused for good",
        {
            "type": "refused",
            "protocol": PROTOCOL,
            "reason": "protocol_version",
            "message": "the other side speaks protocol 2.0, this one 1.1",
            "fatal": True,
        },
        None,
    ),
    (
        "credit",
        {
            "type": "credit",
            "protocol": PROTOCOL,
            "stream": "rgb",
            "granted": 48,
            "received_sequence": 15,
        },
        None,
    ),
    (
        "credit with what is written down",
        {
            "type": "credit",
            "protocol": "1.1",
            "stream": "rgb",
            "granted": 48,
            "received_sequence": 15,
            "acknowledged_sequence": 11,
        },
        None,
    ),
    (
        "clock_request",
        {
            "type": "clock_request",
            "protocol": PROTOCOL,
            "request_id": 7,
            "server_time_ns": 1_000_000_000,
        },
        None,
    ),
    (
        "guidance",
        {
            "type": "guidance",
            "protocol": PROTOCOL,
            "revision": 3,
            "severity": "caution",
            "current_step": {"id": 4, "title": "Fit the front wheel"},
            "next_step": None,
            "text": "Tighten the nut first",
            "progress": [4, 11],
            "device_time_ns": DEVICE_TIME_NS,
        },
        None,
    ),
    (
        "guidance with words to speak and a picture",
        {
            "type": "guidance",
            "protocol": PROTOCOL,
            "revision": 5,
            "severity": "info",
            "current_step": {"id": 4, "title": "Fit the front wheel"},
            "next_step": {"id": 6, "title": "Fit the rear wheel"},
            "text": "Fit the front wheel.",
            "progress": [4, 11],
            "device_time_ns": DEVICE_TIME_NS,
            "spoken": "Fit the front wheel.",
            "spoken_revision": 4,
            "picture": PICTURE_ID,
        },
        None,
    ),
    (
        "picture",
        {"type": "picture", "protocol": PROTOCOL, "picture": PICTURE_ID, "encoding": "png"},
        PNG,
    ),
    (
        "command_result",
        {
            "type": "command_result",
            "protocol": PROTOCOL,
            "command_id": "c0ffee01",
            "accepted": False,
            "text": "All steps are done.",
        },
        None,
    ),
    ("finish", {"type": "finish", "protocol": PROTOCOL, "reason": "closed by REST"}, None),
    ("closed", {"type": "closed", "protocol": PROTOCOL, "session": PACKET["session"]}, None),
]


def in_our_order(fields: dict[str, Any]) -> dict[str, Any]:
    """Any order is right on the wire; ours ends with the protocol."""
    return {key: fields[key] for key in fields if key != "protocol"} | {
        "protocol": fields["protocol"]
    }


def main() -> None:
    messages = [
        {
            "name": name,
            "from": side,
            "fields": in_our_order(fields),
            "header_hex": msgpack.packb(in_our_order(fields)).hex(),
            "payload_hex": None if payload is None else payload.hex(),
        }
        for side, rows in (("client", CLIENT), ("server", SERVER))
        for name, fields, payload in rows
    ]
    text = json.dumps(messages, indent=1, ensure_ascii=False)
    Path(__file__).with_name("messages.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
