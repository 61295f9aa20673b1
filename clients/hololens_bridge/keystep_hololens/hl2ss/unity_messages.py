"""Unity message queue (UMQ): what a client puts on show in the headset's Unity app.

A request is any number of commands back to back; each is answered by one u32, in order. Transforms
are in Unity's convention: left-handed, x right, y up, z ahead, metres; quaternions x, y, z, w.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from keystep_capture.errors import ConfigError, DeviceError
from keystep_hololens.hl2ss.protocol import Bytes

NO_SCENE = 0xFFFFFFFF
"""What the stand-alone app answers to all but debug text: nothing can be put on show."""
FAILED, DONE = 0, 1
MAX_MESSAGE_SIZE = 32 * 2**20
_HEAD = struct.Struct("<II")
_KEY = struct.Struct("<I")
_TRANSFORM = struct.Struct("<10f")
_TEXT = struct.Struct("<5f")
ANY_KEY = 0
"""Where the target is the last object created, the key is ignored but must be there."""


class UnityCommand(enum.IntEnum):
    """Commands of hl2ss's remote scene script."""

    CREATE_PRIMITIVE = 0
    SET_ACTIVE = 1
    SET_WORLD_TRANSFORM = 2
    SET_LOCAL_TRANSFORM = 3
    SET_COLOR = 4
    SET_TEXTURE = 5
    CREATE_TEXT = 6
    SET_TEXT = 7
    SAY = 8
    LOAD_MESH = 15
    REMOVE = 16
    REMOVE_ALL = 17
    BEGIN_DISPLAY_LIST = 18
    END_DISPLAY_LIST = 19
    SET_TARGET_MODE = 20
    DEBUG_TEXT = 0xFFFFFFFE


class Primitive(enum.IntEnum):
    """Shapes that can be created."""

    SPHERE = 0
    CAPSULE = 1
    CYLINDER = 2
    CUBE = 3
    PLANE = 4
    QUAD = 5


class TargetMode(enum.IntEnum):
    """Which object a command means: the one with its key, or the last one created."""

    USE_KEY = 0
    USE_LAST = 1


@dataclass(frozen=True, slots=True)
class UnityMessage:
    """One command with its data; `command` may be one nobody knows."""

    command: int
    data: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where an object stands, in Unity's convention.

    Attributes:
        head_locked: Relative to the camera (z ahead) and moving with it; else in the world.
        rotation: Quaternion x, y, z, w.
    """

    position_m: tuple[float, float, float]
    rotation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    head_locked: bool = True

    def encode(self) -> bytes:
        """Return the 40 bytes after the key."""
        return _TRANSFORM.pack(*self.position_m, *self.rotation, *self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPanel:
    """A text to put on show; `font_size` is TextMeshPro's."""

    text: str
    placement: Placement
    font_size: float = 0.4
    rgba: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturePanel:
    """A picture to put on show, on a square of 1 m times the placement's scale.

    Attributes:
        image: PNG or JPEG bytes.
    """

    image: bytes
    placement: Placement


Panel = TextPanel | PicturePanel


def encode_message(message: UnityMessage) -> bytes:
    """Return the bytes of one command.

    Raises:
        ConfigError: The id is reserved or does not fit, or the data is too long.
    """
    if not 0 <= message.command < 0xFFFFFFFF:
        raise ConfigError(f"a UMQ command is 0 to 0xFFFFFFFE, got {message.command:#x}")
    if len(message.data) > MAX_MESSAGE_SIZE:
        raise ConfigError(
            f"a UMQ command carries at most {MAX_MESSAGE_SIZE} bytes, got {len(message.data)}"
        )
    return _HEAD.pack(message.command, len(message.data)) + message.data


def parse_message(data: Bytes) -> tuple[UnityMessage, int] | None:
    """Take one command off the front of `data`: it and the bytes used, None if incomplete.

    Raises:
        DeviceError: It announces more than 32 MiB.
    """
    view = memoryview(data)
    if len(view) < _HEAD.size:
        return None
    command, size = _HEAD.unpack(view[: _HEAD.size])
    if size > MAX_MESSAGE_SIZE:
        raise DeviceError(f"a UMQ command announces {size} bytes, at most {MAX_MESSAGE_SIZE} fit")
    end = _HEAD.size + size
    if len(view) < end:
        return None
    return UnityMessage(command, bytes(view[_HEAD.size : end])), end


# --- commands ------------------------------------------------------------------------------------

BEGIN_DISPLAY_LIST = UnityMessage(UnityCommand.BEGIN_DISPLAY_LIST)
END_DISPLAY_LIST = UnityMessage(UnityCommand.END_DISPLAY_LIST)
REMOVE_ALL = UnityMessage(UnityCommand.REMOVE_ALL)
CREATE_TEXT = UnityMessage(UnityCommand.CREATE_TEXT)


def create_primitive(shape: Primitive) -> UnityMessage:
    """Create an inactive object; the reply is its key."""
    return UnityMessage(UnityCommand.CREATE_PRIMITIVE, _KEY.pack(shape))


def set_active(key: int, *, active: bool) -> UnityMessage:
    """Show or hide an object."""
    return UnityMessage(UnityCommand.SET_ACTIVE, _HEAD.pack(key, active))


def place(key: int, placement: Placement) -> UnityMessage:
    """Put an object in the world or before the camera."""
    command = UnityCommand.SET_WORLD_TRANSFORM
    if placement.head_locked:
        command = UnityCommand.SET_LOCAL_TRANSFORM
    return UnityMessage(command, _KEY.pack(key) + placement.encode())


def set_color(key: int, rgba: tuple[float, float, float, float]) -> UnityMessage:
    """Colour an object."""
    return UnityMessage(UnityCommand.SET_COLOR, _KEY.pack(key) + struct.pack("<4f", *rgba))


def set_texture(key: int, image: bytes = b"") -> UnityMessage:
    """Put a PNG or JPEG on an object; without one the texture is removed."""
    return UnityMessage(UnityCommand.SET_TEXTURE, _KEY.pack(key) + image)


def set_text(
    key: int, text: str, *, font_size: float, rgba: tuple[float, float, float, float]
) -> UnityMessage:
    """Write on a text object."""
    style = _KEY.pack(key) + _TEXT.pack(font_size, *rgba)
    return UnityMessage(UnityCommand.SET_TEXT, style + text.encode())


def say(text: str) -> UnityMessage:
    """Speak a text aloud."""
    return UnityMessage(UnityCommand.SAY, text.encode())


def remove(key: int) -> UnityMessage:
    """Remove an object."""
    return UnityMessage(UnityCommand.REMOVE, _KEY.pack(key))


def set_target_mode(mode: TargetMode) -> UnityMessage:
    """Choose which object the commands that follow mean."""
    return UnityMessage(UnityCommand.SET_TARGET_MODE, _KEY.pack(mode))


def debug_text(text: str) -> UnityMessage:
    """Send a text to the debug log; the only command that works without a scene."""
    return UnityMessage(UnityCommand.DEBUG_TEXT, text.encode())


def panel_recipe(panel: Panel) -> tuple[UnityMessage, ...]:
    """Return the commands that create a panel and show it; the first is answered by its key."""
    match panel:
        case TextPanel(text=text, font_size=font_size, rgba=rgba):
            create = CREATE_TEXT
            fill = set_text(ANY_KEY, text, font_size=font_size, rgba=rgba)
        case PicturePanel(image=image):
            create, fill = create_primitive(Primitive.QUAD), set_texture(ANY_KEY, image)
    return (
        create,
        set_target_mode(TargetMode.USE_LAST),
        fill,
        place(ANY_KEY, panel.placement),
        set_active(ANY_KEY, active=True),
        set_target_mode(TargetMode.USE_KEY),
    )


def display_list(*messages: UnityMessage) -> tuple[UnityMessage, ...]:
    """Wrap commands so that Unity runs them within one rendered frame."""
    return (BEGIN_DISPLAY_LIST, *messages, END_DISPLAY_LIST)
