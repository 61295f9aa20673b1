"""Remote configuration (RC): the commands of the persistent connection on port base + 9."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import NamedTuple

from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss.protocol import Bytes

MAX_POINT_COUNT = 640 * 480
"""More camera points or poses than this in one command is taken as garbage."""


class Command(enum.IntEnum):
    """Every command of hl2ss 1.0.37; those with a reply are in `REPLIES`."""

    APPLICATION_VERSION = 0x00
    UTC_OFFSET = 0x01
    MARKER_STATE = 0x02
    PV_STATUS = 0x03
    PV_FOCUS = 0x04
    PV_TEMPORAL_DENOISING = 0x05
    PV_WHITE_BALANCE_PRESET = 0x06
    PV_WHITE_BALANCE_VALUE = 0x07
    PV_EXPOSURE = 0x08
    PV_EXPOSURE_PRIORITY_VIDEO = 0x09
    PV_ISO = 0x0A
    PV_BACKLIGHT_COMPENSATION = 0x0B
    PV_SCENE_MODE = 0x0C
    FLAT_MODE = 0x0D
    RM_EYE_SELECTION = 0x0E
    PV_DESIRED_OPTIMIZATION = 0x0F
    PV_PRIMARY_USE = 0x10
    PV_OPTICAL_STABILIZATION = 0x11
    PV_HDR = 0x12
    PV_REGION_OF_INTEREST = 0x13
    INTERFACE_PRIORITY = 0x14
    QUIET_MODE = 0x15
    RM_MAP_CAMERA_POINTS = 0x16
    RM_RIG_NODE_WORLD_POSES = 0x17
    CURRENT_TIME = 0x18
    SI_SAMPLING_DELAY = 0x19
    ENCODER_BUFFERING = 0x20
    READER_BUFFERING = 0x21
    RM_LOOP_CONTROL = 0x22


class TimeSource(enum.IntEnum):
    """Which clock `CURRENT_TIME` reads: QPC (hns since boot) or UTC FILETIME (hns since 1601)."""

    QPC = 0
    UTC = 1


_ONE_U32 = struct.Struct("<I")
_ARGUMENTS: dict[Command, struct.Struct] = {
    Command.APPLICATION_VERSION: struct.Struct("<"),
    Command.UTC_OFFSET: struct.Struct("<"),
    Command.PV_STATUS: struct.Struct("<"),
    Command.PV_FOCUS: struct.Struct("<5I"),
    Command.PV_EXPOSURE: struct.Struct("<2I"),
    Command.PV_ISO: struct.Struct("<2I"),
    Command.PV_REGION_OF_INTEREST: struct.Struct("<I4f"),
    Command.INTERFACE_PRIORITY: struct.Struct("<Ii"),
    Command.SI_SAMPLING_DELAY: struct.Struct("<q"),
    Command.RM_LOOP_CONTROL: struct.Struct("<2I"),
}
_COUNTED: dict[Command, tuple[struct.Struct, str]] = {
    Command.RM_MAP_CAMERA_POINTS: (struct.Struct("<3I"), "2f"),
    Command.RM_RIG_NODE_WORLD_POSES: (struct.Struct("<I"), "Q"),
}
REPLIES: dict[Command, struct.Struct] = {
    Command.APPLICATION_VERSION: struct.Struct("<4H"),
    Command.UTC_OFFSET: struct.Struct("<Q"),
    Command.PV_STATUS: struct.Struct("<B"),
    Command.CURRENT_TIME: struct.Struct("<Q"),
}
"""Replies of fixed size. The two RM commands also reply, with as many floats as were asked for."""


class PointMapping(enum.IntEnum):
    """Direction of `RM_MAP_CAMERA_POINTS`."""

    IMAGE_TO_UNIT_PLANE = 0
    UNIT_PLANE_TO_IMAGE = 1


def reply_size(call: RcCall) -> int:
    """Bytes of the headset's answer, 0 for commands without."""
    match call.command:
        case Command.RM_MAP_CAMERA_POINTS:
            return 8 * int(call.arguments[2])
        case Command.RM_RIG_NODE_WORLD_POSES:
            return 64 * int(call.arguments[0])
        case _:
            return REPLIES[call.command].size if call.command in REPLIES else 0


@dataclass(frozen=True, slots=True)
class RcCall:
    """One command with its arguments in the order of the wire (counted ones are flat)."""

    command: Command
    arguments: tuple[int | float, ...] = ()


class Version(NamedTuple):
    """Version of the app on the headset; in the Unity plugin it is the Unity app's."""

    major: int
    minor: int
    build: int
    revision: int


def encode_call(call: RcCall) -> bytes:
    """Return the bytes of one command."""
    if call.command in _COUNTED:
        head, item = _COUNTED[call.command]
        length = head.size // _ONE_U32.size
        items = "<" + item * int(call.arguments[length - 1])
        tail = struct.pack(items, *call.arguments[length:])
        return bytes((call.command,)) + head.pack(*call.arguments[:length]) + tail
    layout = _ARGUMENTS.get(call.command, _ONE_U32)
    return bytes((call.command,)) + layout.pack(*call.arguments)


def parse_call(data: Bytes) -> tuple[RcCall, int] | None:
    """Take one command off the front of `data`: the call and the bytes used, None if incomplete.

    Raises:
        DeviceError: Unknown command, or a count beyond reason.
    """
    view = memoryview(data)
    if not view:
        return None
    try:
        command = Command(view[0])
    except ValueError as error:
        raise DeviceError(f"remote configuration has no command {view[0]:#04x}") from error
    layout = _COUNTED[command][0] if command in _COUNTED else _ARGUMENTS.get(command, _ONE_U32)
    end = 1 + layout.size
    if len(view) < end:
        return None
    arguments = layout.unpack(view[1:end])
    if command not in _COUNTED:
        return RcCall(command, arguments), end
    if arguments[-1] > MAX_POINT_COUNT:
        raise DeviceError(f"{command.name} counts {arguments[-1]}, at most {MAX_POINT_COUNT}")
    items = struct.Struct("<" + _COUNTED[command][1] * arguments[-1])
    if len(view) < end + items.size:
        return None
    return RcCall(command, arguments + items.unpack(view[end : end + items.size])), end + items.size
