"""Links over real sockets: a recording consumer, senders, and strangers who speak raw ZeroMQ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
import zmq
from hypothesis import HealthCheck, settings

from keystep_capture import access, wire
from keystep_capture.errors import KeystepError, StateError
from keystep_capture.key_files import DeviceKey
from keystep_capture.peers import Admission, Buffer, Lane, Peer
from keystep_capture.receiver import Receiver
from keystep_capture.sender import Callbacks, Sender, Source
from keystep_capture.streams import STREAMS

settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")  # a busy machine is no failure

ANY_PORT = "tcp://127.0.0.1:*"


async def eventually(true: Callable[[], Any]) -> None:
    """Wait until something holds; ten seconds are a hung test, not a measurement."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 (what is awaited has no event)
            await asyncio.sleep(0.002)


class TurnedClock:
    """A clock that goes on only when the test turns it."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@dataclass
class Session:
    """What a consumer keeps of a session while its senders come and go."""

    session_id: str
    device: str
    instance: str
    epoch: int = 0
    lanes: dict[str, Lane] = field(default_factory=dict)


@dataclass
class Taken:
    """A packet that reached the consumer."""

    session: str
    header: wire.PacketHeader
    payload: bytes


class Recorder:
    """A consumer of packets (`receiver.Handler`) that keeps what it is given."""

    def __init__(self) -> None:
        self.receiver: Receiver | None = None
        self.sessions: dict[str, Session] = {}
        self.taken: list[Taken] = []
        self.unconsumed: list[Lane] = []
        self.holds = False
        self.refusal: KeystepError | None = None
        self.unknown_streams: set[str] = set()  # as to an older server
        self.may_admit = asyncio.Event()
        self.may_admit.set()
        self.hellos: list[wire.Hello] = []
        self.joined: list[Peer] = []
        self.left: list[Peer] = []
        self.here: set[Peer] = set()
        self.acks: list[wire.GuidanceAck] = []
        self.finished: list[wire.Finished] = []
        self.commands: list[wire.Command] = []
        self.pictures: dict[str, tuple[wire.PictureEncoding, bytes]] = {}

    async def admit(self, hello: wire.Hello) -> Admission:
        self.hellos.append(hello)
        await self.may_admit.wait()
        if self.refusal is not None:
            raise self.refusal
        session = self._session(hello)
        if session.instance != hello.instance or not session.epoch:
            session.epoch += 1
            session.instance = hello.instance
        epoch = session.epoch
        lanes = {
            name: session.lanes[name].handed_over(epoch=epoch)
            if name in session.lanes
            else Lane(spec=STREAMS[name], epoch=epoch)
            for name in hello.streams
            if name not in self.unknown_streams
        }
        session.lanes |= lanes
        return Admission(session_id=session.session_id, epoch=epoch, lanes=lanes)

    def _session(self, hello: wire.Hello) -> Session:
        name = hello.session or f"ses-{hello.device}"
        session = self.sessions.setdefault(name, Session(name, hello.device, hello.instance))
        if session.device != hello.device:
            raise StateError(f"session {name} belongs to {session.device}")
        return session

    def on_joined(self, peer: Peer) -> None:
        self.joined.append(peer)
        self.here.add(peer)

    def on_packet(self, peer: Peer, lane: Lane, header: wire.PacketHeader, payload: Buffer) -> bool:
        self.taken.append(Taken(peer.session_id, header, bytes(payload)))
        if self.holds:
            self.unconsumed.append(lane)
        return not self.holds

    def on_guidance_ack(self, peer: Peer, ack: wire.GuidanceAck) -> None:
        self.acks.append(ack)

    def on_command(self, peer: Peer, command: wire.Command) -> None:
        self.commands.append(command)

    def picture(self, peer: Peer, picture: str) -> tuple[wire.PictureEncoding, bytes] | None:
        return self.pictures.get(picture)

    def on_finished(self, peer: Peer, finished: wire.Finished) -> None:
        self.finished.append(finished)
        if self.receiver is not None:
            for lane in peer.lanes.values():
                self.receiver.acknowledge(lane, lane.received_sequence)
        if finished.close and self.receiver is not None:
            self.receiver.dismiss(peer)

    def on_left(self, peer: Peer) -> None:
        self.left.append(peer)
        self.here.discard(peer)

    def work_off(self) -> None:
        """Consume all that was held."""
        assert self.receiver is not None
        lanes, self.unconsumed = self.unconsumed, []
        for lane in lanes:
            self.receiver.consumed(lane)

    def sequences(self, stream: str, session: str | None = None) -> list[int]:
        """Numbers of the packets taken, in their order of arrival."""
        return [
            taken.header.sequence
            for taken in self.taken
            if taken.header.stream == stream and session in (None, taken.session)
        ]


class Stranger:
    """A DEALER that says what it likes."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        key: DeviceKey | None = None,
        routing_id: bytes | None = None,
    ) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        if routing_id is not None:
            self.socket.routing_id = routing_id
        if key is not None:
            access.secure_client(self.socket, key)
        self.socket.connect(endpoint)
        self.session, self.epoch = "none", 0
        self.heard: list[dict[str, Any]] = []
        self.raw: list[bytes] = []

    def say(self, header: dict[str, Any] | bytes, *more: bytes) -> None:
        """Send a message; a map is packed first."""
        data = header if isinstance(header, bytes) else msgpack.packb(header)
        self.socket.send_multipart([data, *more])

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next message of a type, as a map."""
        position = len(self.heard)

        def arrived() -> bool:
            self._read()
            return any(message["type"] == kind for message in self.heard[position:])

        await eventually(arrived)
        return next(message for message in self.heard[position:] if message["type"] == kind)

    def _read(self) -> None:
        while self.socket.poll(0):
            self.raw.append(self.socket.recv())
            self.heard.append(msgpack.unpackb(self.raw[-1]))

    def hello(self, device: str, *streams: str, **fields: Any) -> dict[str, Any]:
        """A hello's fields."""
        return {
            "type": "hello",
            "protocol": "1.0",
            "device": device,
            "client": "test",
            "instance": "i1",
            "kind": "guided",
            "streams": list(streams),
        } | fields

    def packet(self, stream: str, sequence: int, **fields: Any) -> dict[str, Any]:
        """A packet's fields, in the session that was welcome."""
        return {
            "type": "packet",
            "protocol": "1.0",
            "session": self.session,
            "epoch": self.epoch,
            "stream": stream,
            "sequence": sequence,
            "device_time_ns": 0,
            "send_time_ns": 0,
            "encoding": next(iter(STREAMS[stream].encodings)) if stream in STREAMS else "raw",
        } | fields

    async def join(self, device: str, *streams: str, **fields: Any) -> dict[str, Any]:
        """Say hello and wait for the welcome."""
        self.say(self.hello(device, *streams, **fields))
        welcome = await self.hear("welcome")
        self.session, self.epoch = welcome["session"], welcome["epoch"]
        return welcome

    async def refused(self, header: dict[str, Any] | bytes, *more: bytes) -> dict[str, Any]:
        """Send what must be refused; the refusal."""
        self.say(header, *more)
        return await self.hear("refused")


@dataclass
class Rig:
    """Everything of a test that must be closed."""

    recorder: Recorder
    context: zmq.Context[zmq.Socket[bytes]]
    receivers: list[Receiver] = field(default_factory=list)
    senders: list[tuple[Sender, asyncio.Task[None]]] = field(default_factory=list)
    strangers: list[Stranger] = field(default_factory=list)
    sockets: list[zmq.Socket[bytes]] = field(default_factory=list)

    def receive(self, bind: str = ANY_PORT, **options: Any) -> Receiver:
        """Start a receiver for the recorder."""
        receiver = Receiver(self.recorder, bind=bind, **options)
        self.recorder.receiver = receiver
        self.receivers.append(receiver)
        return receiver

    eventually = staticmethod(eventually)

    async def stop_receiving(self) -> str:
        """Close the receiver as a server that goes away does; its endpoint."""
        receiver = self.receivers.pop()
        await receiver.close()
        return receiver.endpoint

    def connect(
        self,
        *streams: str,
        device: str = "hl2",
        instance: str = "i1",
        callbacks: Callbacks | None = None,
        endpoint: str | None = None,
        source: dict[str, Any] | None = None,
        **options: Any,
    ) -> Sender:
        """Start a sender to the receiver."""
        sender = Sender(
            Source(device=device, client="test", streams=streams, **(source or {})),
            server=endpoint or self.receivers[-1].endpoint,
            instance=instance,
            callbacks=callbacks,
            **options,
        )
        self.senders.append((sender, asyncio.create_task(sender.run())))
        return sender

    async def open(self, *streams: str, **options: Any) -> Sender:
        """Start a sender and wait until it is welcome."""
        sender = self.connect(*streams, **options)
        await eventually(lambda: sender.state == "open")
        return sender

    def running(self, sender: Sender) -> asyncio.Task[None]:
        """The task of a sender."""
        return next(task for other, task in self.senders if other is sender)

    def stranger(self, endpoint: str | None = None, **options: Any) -> Stranger:
        """Connect a socket of the test's own."""
        stranger = Stranger(self.context, endpoint or self.receivers[-1].endpoint, **options)
        self.strangers.append(stranger)
        return stranger

    async def close(self) -> None:
        for _, task in self.senders:
            task.cancel()
        await asyncio.gather(*(task for _, task in self.senders), return_exceptions=True)
        for socket in (*self.sockets, *(stranger.socket for stranger in self.strangers)):
            socket.close()
        while self.receivers:
            await self.stop_receiving()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    rig = Rig(Recorder(), context)
    yield rig
    await rig.close()
    context.term()


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def fast_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats and dialling at a test's pace; silence is still told by the clock."""
    monkeypatch.setattr("keystep_capture.receiver.HEARTBEAT_S", 0.02)
    monkeypatch.setattr("keystep_capture.sender.FIRST_BACKOFF_S", 0.02)
