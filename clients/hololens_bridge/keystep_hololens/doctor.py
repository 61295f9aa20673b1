"""What of a headset can be reached: the bridge's part of `keystep doctor`.

Each port is connected to and left again without a request, so nothing starts on the headset; only
remote configuration is asked something: its version and its clock.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from keystep_capture.errors import DeviceError
from keystep_capture.findings import Finding, Level
from keystep_hololens.hl2ss.client import RemoteConfigurationClient
from keystep_hololens.hl2ss.connection import connect
from keystep_hololens.hl2ss.protocol import DEFAULT_BASE_PORT, Port, port

CONNECT_S = 2.0
PROBES = 5
_START_APP = "start the hl2ss app on the headset and leave it in front"
_RESEARCH_MODE = (
    "switch on Research mode in the Device Portal (System > Research mode) and restart the headset"
)
_UNITY = "use a Unity app with the hl2ss plugin if the wearer is to see guidance on the headset"

# What the bridge uses, whether it can do without, and what to do where it is off.
_USED: Final[tuple[tuple[Port, Level, str], ...]] = (
    (Port.PERSONAL_VIDEO, "problem", _START_APP),
    (Port.SPATIAL_INPUT, "problem", _START_APP),
    (Port.RM_DEPTH_LONGTHROW, "warning", _RESEARCH_MODE),
    (Port.RM_DEPTH_AHAT, "warning", _RESEARCH_MODE),
    (Port.RM_VLC_LEFTFRONT, "warning", _RESEARCH_MODE),
    (Port.RM_VLC_LEFTLEFT, "warning", _RESEARCH_MODE),
    (Port.RM_VLC_RIGHTFRONT, "warning", _RESEARCH_MODE),
    (Port.RM_VLC_RIGHTRIGHT, "warning", _RESEARCH_MODE),
    (Port.RM_IMU_ACCELEROMETER, "warning", _RESEARCH_MODE),
    (Port.RM_IMU_GYROSCOPE, "warning", _RESEARCH_MODE),
    (Port.RM_IMU_MAGNETOMETER, "warning", _RESEARCH_MODE),
    (Port.EXTENDED_EYE_TRACKER, "warning", "accept the eye tracker's prompt and calibrate it"),
    (Port.MICROPHONE, "warning", "accept the microphone's prompt; the bridge leaves it off"),
    (Port.VOICE_INPUT, "warning", "accept the microphone's prompt if voice commands are wanted"),
    (Port.UNITY_MESSAGE_QUEUE, "warning", _UNITY),
    (Port.GUEST_MESSAGE_QUEUE, "warning", _UNITY),
)


def check_headset(host: str, base_port: int | None = None) -> list[Finding]:
    """Say which of a headset's hl2ss ports can be reached, its version and how far it is.

    Args:
        host: Its address.
        base_port: Port of the first service; None: hl2ss's own, 3800.
    """
    return asyncio.run(_check(host, DEFAULT_BASE_PORT if base_port is None else base_port))


async def _check(host: str, base_port: int) -> list[Finding]:
    findings = await _remote_configuration(host, base_port)
    if findings[0].level == "problem" and not await _answers_at_all(host, base_port):
        return findings
    checks = (_port(host, base_port, kind, level, remedy) for kind, level, remedy in _USED)
    return [*findings, *await asyncio.gather(*checks)]


async def _remote_configuration(host: str, base_port: int) -> list[Finding]:
    name = _name(Port.REMOTE_CONFIGURATION, base_port)
    remote = RemoteConfigurationClient(
        host=host, base_port=base_port, connect_timeout_s=CONNECT_S, read_timeout_s=CONNECT_S
    )
    try:
        version = await remote.version()
        probes = await remote.probe_clock(time.monotonic_ns, count=PROBES)
    except DeviceError as error:
        return [_finding(name, "problem", str(error), _START_APP)]
    round_trip_ms = min(p.local_receive_ns - p.local_send_ns for p in probes) / 1e6
    near = round_trip_ms < 20
    return [
        _finding(name, "ok", f"hl2ss {'.'.join(map(str, version))} answers"),
        _finding(
            "clock",
            "ok" if near else "warning",
            f"shortest round trip {round_trip_ms:.1f} ms: its clock is known to half of that",
            "" if near else "move to 5 GHz Wi-Fi close to the access point",
        ),
    ]


async def _answers_at_all(host: str, base_port: int) -> bool:
    """Whether any port is open or refuses, so that asking the others is worth the time."""
    try:
        async with connect(
            host,
            Port.PERSONAL_VIDEO,
            base_port,
            connect_timeout_s=CONNECT_S,
            read_timeout_s=CONNECT_S,
        ):
            return True
    except DeviceError as error:
        return isinstance(error.__cause__, ConnectionRefusedError)


async def _port(host: str, base_port: int, kind: Port, level: Level, remedy: str) -> Finding:
    name = _name(kind, base_port)
    try:
        async with connect(
            host, kind, base_port, connect_timeout_s=CONNECT_S, read_timeout_s=CONNECT_S
        ):
            return _finding(name, "ok", "can be reached")
    except DeviceError as error:
        refused = isinstance(error.__cause__, ConnectionRefusedError)
        return _finding(name, level, "refuses connections" if refused else str(error), remedy)


def _name(kind: Port, base_port: int) -> str:
    return f"{port(kind, base_port)} {kind.name.lower()}"


def _finding(name: str, level: Level, detail: str, remedy: str = "") -> Finding:
    return Finding(area="headset", name=name, level=level, detail=detail, remedy=remedy)
