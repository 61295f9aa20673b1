"""Clients of the message ports: to the Unity app (UMQ), from it (GMQ), and voice input (VI)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from keystep_capture.errors import ConfigError, DeviceError
from keystep_hololens.hl2ss import guest_messages as gmq
from keystep_hololens.hl2ss import unity_messages as umq
from keystep_hololens.hl2ss import voice_input as vi
from keystep_hololens.hl2ss.connection import Connection, connect
from keystep_hololens.hl2ss.protocol import DEFAULT_BASE_PORT, Port

_REPLY_SIZE = 4
_CREATING = (umq.UnityCommand.CREATE_PRIMITIVE, umq.UnityCommand.CREATE_TEXT)


@asynccontextmanager
async def open_unity_messages(
    host: str,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 5.0,
    connect_timeout_s: float = 5.0,
) -> AsyncIterator[UnityMessageClient]:
    """Connect to the Unity app's message queue.

    What an earlier client put there is still on show: call `remove_all` first.

    Raises:
        DeviceError: Refused, not reachable, or no answer in time.
    """
    async with connect(
        host,
        Port.UNITY_MESSAGE_QUEUE,
        base_port,
        connect_timeout_s=connect_timeout_s,
        read_timeout_s=read_timeout_s,
    ) as connection:
        yield UnityMessageClient(connection)


class UnityMessageClient:
    """Puts things on show; every call returns once the app has done it.

    All methods raise DeviceError where the app stays silent (a plugin without a queue script, or
    another client holds the port), refuses a command, or has no scene (the stand-alone app). After
    a timeout the connection is out of step: open it anew.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def exchange(self, *messages: umq.UnityMessage) -> tuple[int, ...]:
        """Send commands and return the app's bare replies, whatever they are."""
        await self._connection.send(b"".join(map(umq.encode_message, messages)))
        replies = [await self._connection.read(_REPLY_SIZE) for _ in messages]
        return tuple(int.from_bytes(reply, "little") for reply in replies)

    async def has_scene(self) -> bool:
        """Whether the app can put things on show; removes nothing."""
        replies = await self.exchange(*umq.display_list())
        return umq.NO_SCENE not in replies

    async def run(self, *messages: umq.UnityMessage) -> tuple[int, ...]:
        """Run commands in one rendered frame; returns the keys of the objects created."""
        replies = await self.exchange(*umq.display_list(*messages))
        if umq.NO_SCENE in replies:
            raise DeviceError(
                f"{self._connection.where} has no scene: it is the stand-alone hl2ss app; start"
                " a Unity app with hl2ss's plugin and remote scene script to show anything"
            )
        for message, reply in zip(messages, replies[1:-1], strict=True):
            if reply == umq.FAILED:
                raise DeviceError(
                    f"{self._connection.where} refused {_name(message)}"
                    f" ({len(message.data)} bytes): unknown object, or data it cannot use"
                )
        created = zip(messages, replies[1:-1], strict=True)
        return tuple(reply for message, reply in created if message.command in _CREATING)

    async def show(self, panels: Sequence[umq.Panel], *, keep: bool = False) -> tuple[int, ...]:
        """Show panels, in one rendered frame; returns their keys.

        Args:
            panels: What to show.
            keep: Leave what is on show; else it is removed first, in the same frame.
        """
        first = () if keep else (umq.REMOVE_ALL,)
        recipes = [message for panel in panels for message in umq.panel_recipe(panel)]
        return await self.run(*first, *recipes)

    async def set_text(
        self,
        key: int,
        text: str,
        *,
        font_size: float,
        rgba: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    ) -> None:
        """Change a text on show."""
        await self.run(umq.set_text(key, text, font_size=font_size, rgba=rgba))

    async def set_texture(self, key: int, image: bytes) -> None:
        """Change a picture on show (PNG or JPEG bytes; none removes it)."""
        await self.run(umq.set_texture(key, image))

    async def remove(self, key: int) -> None:
        """Remove one object."""
        await self.run(umq.remove(key))

    async def remove_all(self) -> None:
        """Remove whatever is on show, an earlier client's things too."""
        await self.run(umq.REMOVE_ALL)

    async def say(self, text: str) -> None:
        """Speak a text aloud."""
        await self.run(umq.say(text))

    async def debug_text(self, text: str) -> None:
        """Send a text to the app's debug log; works without a scene."""
        await self.exchange(umq.debug_text(text))


def _name(message: umq.UnityMessage) -> str:
    try:
        return umq.UnityCommand(message.command).name.lower()
    except ValueError:
        return f"command {message.command}"


# --- guest message queue -------------------------------------------------------------------------


@asynccontextmanager
async def open_guest_messages(
    host: str,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 5.0,
    connect_timeout_s: float = 5.0,
) -> AsyncIterator[GuestMessageClient]:
    """Connect to the queue of messages from the Unity app.

    Raises:
        DeviceError: Refused, not reachable, or no answer in time.
    """
    async with connect(
        host,
        Port.GUEST_MESSAGE_QUEUE,
        base_port,
        connect_timeout_s=connect_timeout_s,
        read_timeout_s=read_timeout_s,
    ) as connection:
        yield GuestMessageClient(connection)


class GuestMessageClient:
    """Takes messages one by one; each is to be answered before the next is taken."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def poll(self) -> gmq.GuestMessage | None:
        """Take the next message, None if there is none.

        Raises:
            DeviceError: The headset is silent or gone, or the message is too long.
        """
        await self._connection.send(gmq.encode_word(gmq.POLL))
        head = await self._connection.read(gmq.HEAD_SIZE)
        message_id, size = gmq.decode_guest_head(head)
        data = bytes(await self._connection.read(size)) if size else b""
        return None if message_id == gmq.POLL else gmq.GuestMessage(message_id, data)

    async def answer(self, result: int) -> None:
        """Tell the app what became of the message just taken; it does not reply.

        Raises:
            ConfigError: The result is 0xFFFFFFFF, which would be a poll, or no u32.
            DeviceError: The headset is gone.
        """
        if result == gmq.POLL:
            raise ConfigError("0xFFFFFFFF asks for a message; it cannot be a result")
        await self._connection.send(gmq.encode_word(result))


# --- voice input ---------------------------------------------------------------------------------


@asynccontextmanager
async def open_voice_input(
    host: str,
    phrases: Sequence[str],
    *,
    with_mark: bool = True,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 5.0,
    connect_timeout_s: float = 5.0,
) -> AsyncIterator[VoiceInputClient]:
    """Have the headset listen for phrases until the end of the context.

    Args:
        host: The headset.
        phrases: What to listen for.
        with_mark: Lead each phrase with a byte order mark, as hl2ss's own client does.
        base_port: Port of the first service.
        read_timeout_s: How long an answer may take.
        connect_timeout_s: How long connecting may take.

    Raises:
        DeviceError: Refused, not reachable, or no answer in time.
        ConfigError: There are no phrases, or they are too long.
    """
    request = vi.encode_phrases(tuple(phrases), with_mark=with_mark)
    async with connect(
        host,
        Port.VOICE_INPUT,
        base_port,
        connect_timeout_s=connect_timeout_s,
        read_timeout_s=read_timeout_s,
    ) as connection:
        await connection.send(request)
        client = VoiceInputClient(connection, tuple(phrases))
        yield client
        await client.stop()


class VoiceInputClient:
    """Asks what was heard since the last time."""

    def __init__(self, connection: Connection, phrases: tuple[str, ...]) -> None:
        self._connection = connection
        self.phrases = phrases

    async def poll(self) -> list[vi.HeardPhrase]:
        """Return what was heard; `phrase_of` says which phrase.

        Raises:
            DeviceError: The headset is silent, gone, or could not listen for these phrases.
        """
        await self._connection.send(vi.POLL)
        count = vi.decode_heard_count(await self._connection.read(vi.COUNT_SIZE))
        data = memoryview(await self._connection.read(vi.RESULT_SIZE * count) if count else b"")
        cuts = range(0, len(data), vi.RESULT_SIZE)
        return [vi.HeardPhrase.decode(data[cut : cut + vi.RESULT_SIZE]) for cut in cuts]

    def phrase_of(self, heard: vi.HeardPhrase) -> str | None:
        """Return the phrase that was heard; None where it is unknown or was rejected."""
        known = heard.phrase_idx < len(self.phrases)
        if not known or heard.confidence == vi.Confidence.REJECTED:
            return None
        return self.phrases[heard.phrase_idx]

    async def listen_for(self, phrases: Sequence[str], *, with_mark: bool = True) -> None:
        """Listen for other phrases from now on; what was heard and not polled is lost.

        Raises:
            ConfigError: There are no phrases, or they are too long.
            DeviceError: The headset is gone.
        """
        request = vi.encode_phrases(tuple(phrases), with_mark=with_mark)
        await self._connection.send(vi.STOP + request)
        self.phrases = tuple(phrases)

    async def stop(self) -> None:
        """Stop listening.

        Raises:
            DeviceError: The headset is gone.
        """
        await self._connection.send(vi.STOP)
