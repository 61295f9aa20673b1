"""The simulated headset's Unity app: what UMQ clients put on show, and messages to GMQ clients.

It outlives connections: objects stay on show when a client leaves, as on a headset.
"""

from __future__ import annotations

import asyncio
import enum
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from keystep_hololens.hl2ss import guest_messages as gmq
from keystep_hololens.hl2ss import unity_messages as umq
from keystep_hololens.simulator.ports import Client

_FIRST_KEY = -1_234  # instance ids are negative i32 and go down
_U32, _TEXT, _TRANSFORM = struct.Struct("<I"), struct.Struct("<5f"), struct.Struct("<10f")


class AppKind(enum.StrEnum):
    """What runs on the headset.

    `SCENE` is a Unity app with hl2ss's plugin and scene script. `STAND_ALONE` is hl2ss's own app:
    it has no scene and says so. `NO_SCRIPT` is a plugin whose queue nobody reads: silence.
    """

    SCENE = enum.auto()
    STAND_ALONE = enum.auto()
    NO_SCRIPT = enum.auto()


@dataclass(slots=True, kw_only=True)
class SceneObject:
    """One object of the scene; transforms are in Unity's convention, as sent."""

    key: int
    primitive: umq.Primitive | None
    active: bool = False
    placement: umq.Placement | None = None
    rgba: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    texture: bytes = b""
    text: str = ""
    font_size: float = 0.0


@dataclass(slots=True, kw_only=True)
class UnityApp:
    """The app and its scene, which tests read.

    Attributes:
        frame_rate_hz: Outside a display list one command is run per rendered frame.
        objects: By key (u32), shown or not.
        spoken, debug_texts: What was said and logged, in order.
        message_count: Commands run, of any kind.
        guest_results: Answers of GMQ clients, in order.
    """

    kind: AppKind = AppKind.SCENE
    frame_rate_hz: float = 60.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    objects: dict[int, SceneObject] = field(default_factory=dict)
    spoken: list[str] = field(default_factory=list)
    debug_texts: list[str] = field(default_factory=list)
    frame_count: int = 0
    message_count: int = 0
    guest_results: list[int] = field(default_factory=list)
    _guest_messages: deque[gmq.GuestMessage] = field(default_factory=deque)
    _next_key: int = _FIRST_KEY
    _last: SceneObject | None = None
    _in_list: bool = False
    _use_last: bool = False

    @property
    def on_show(self) -> list[SceneObject]:
        """Active objects, oldest first."""
        return [one for one in self.objects.values() if one.active]

    @property
    def texts_on_show(self) -> list[str]:
        """Texts the wearer can read, oldest first."""
        return [one.text for one in self.on_show if one.primitive is None]

    def restart(self) -> None:
        """Forget the scene, as a restarted app does; records are kept."""
        self.objects.clear()
        self._guest_messages.clear()
        self._last, self._in_list, self._use_last = None, False, False

    def offer(self, message: gmq.GuestMessage) -> None:
        """Queue a message for the GMQ client."""
        self._guest_messages.append(message)

    # --- serving ---------------------------------------------------------------------------------

    async def serve_messages(self, client: Client) -> None:
        """Serve one UMQ client until it leaves."""
        if self.kind is AppKind.NO_SCRIPT:
            await asyncio.Event().wait()
        self._in_list, self._use_last = False, False
        while (parsed := await client.receive(umq.parse_message)) is not None:
            message, size = parsed
            client.discard(size)
            if not self._in_list and self.kind is AppKind.SCENE:
                await self.sleep(1 / self.frame_rate_hz)
                self.frame_count += 1
            await client.send(_U32.pack(self._answer(message)))

    async def serve_guest_messages(self, client: Client) -> None:
        """Serve one GMQ client until it leaves."""
        while (word := await client.receive(gmq.parse_word)) is not None:
            client.discard(4)
            if word != gmq.POLL:
                self.guest_results.append(word)
                continue
            await client.send(gmq.encode_guest_message(self._next_guest_message()))

    def _next_guest_message(self) -> gmq.GuestMessage | None:
        if self.kind is AppKind.STAND_ALONE:
            return gmq.GuestMessage(gmq.HELLO, gmq.HELLO_TEXT)
        return self._guest_messages.popleft() if self._guest_messages else None

    # --- commands --------------------------------------------------------------------------------

    def _answer(self, message: umq.UnityMessage) -> int:
        self.message_count += 1
        if message.command == umq.UnityCommand.DEBUG_TEXT:
            self.debug_texts.append(message.data.decode(errors="replace"))
            return 0 if self.kind is AppKind.STAND_ALONE else umq.DONE
        if self.kind is AppKind.STAND_ALONE:
            return umq.NO_SCENE
        try:
            return self._run(message.command, message.data)
        except (struct.error, ValueError, KeyError):  # too short, no such object, not a text
            return umq.FAILED

    def _run(self, command: int, data: bytes) -> int:
        match command:
            case umq.UnityCommand.CREATE_PRIMITIVE:
                return self._create(umq.Primitive(_U32.unpack_from(data)[0]))
            case umq.UnityCommand.CREATE_TEXT:
                return self._create(None)
            case umq.UnityCommand.SAY:
                self.spoken.append(data.decode())
            case umq.UnityCommand.REMOVE_ALL:
                self.objects.clear()
                self._last = None
            case umq.UnityCommand.BEGIN_DISPLAY_LIST:
                self._in_list = True
            case umq.UnityCommand.END_DISPLAY_LIST:
                self._in_list = False
            case umq.UnityCommand.SET_TARGET_MODE:
                self._use_last = umq.TargetMode(_U32.unpack_from(data)[0]) == 1
            case _:
                self._change(self._target(data), command, data[_U32.size :])
        return umq.DONE

    def _create(self, primitive: umq.Primitive | None) -> int:
        key = self._next_key % 2**32
        self._next_key -= 2
        self._last = self.objects[key] = SceneObject(key=key, primitive=primitive)
        return key

    def _target(self, data: bytes) -> SceneObject:
        (key,) = _U32.unpack_from(data)
        if not self._use_last:
            return self.objects[key]
        if self._last is None:
            raise KeyError(key)
        return self._last

    def _change(self, target: SceneObject, command: int, data: bytes) -> None:
        match command:
            case umq.UnityCommand.SET_ACTIVE:
                target.active = _U32.unpack_from(data)[0] != 0
            case umq.UnityCommand.SET_WORLD_TRANSFORM | umq.UnityCommand.SET_LOCAL_TRANSFORM:
                values = _TRANSFORM.unpack_from(data)
                target.placement = umq.Placement(
                    position_m=values[0:3],
                    rotation=values[3:7],
                    scale=values[7:10],
                    head_locked=command == umq.UnityCommand.SET_LOCAL_TRANSFORM,
                )
            case umq.UnityCommand.SET_COLOR:
                target.rgba = struct.unpack_from("<4f", data)
            case umq.UnityCommand.SET_TEXTURE:
                target.texture = data
            case umq.UnityCommand.SET_TEXT:
                if target.primitive is not None:
                    raise KeyError(target.key)
                size, *rgba = _TEXT.unpack_from(data)
                target.text = data[_TEXT.size :].decode()
                target.font_size, target.rgba = size, tuple(rgba)
            case umq.UnityCommand.REMOVE:
                self.objects.pop(target.key, None)
                self._last = None if target is self._last else self._last
            case _:
                raise KeyError(command)
