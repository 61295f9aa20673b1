"""A wire server that records: the real receiver, with a consumer that keeps what it is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from keystep_capture import wire
from keystep_capture.errors import RefusedError
from keystep_capture.peers import Admission, Buffer, Lane, Peer
from keystep_capture.receiver import Receiver
from keystep_capture.streams import STREAMS


class RecordingServer:
    """Takes one session's packets (`receiver.Handler`); it can go away and come back."""

    def __init__(self) -> None:
        self.session, self.epoch = "ses-recorded", 0
        self.hellos: list[wire.Hello] = []
        self.headers: list[wire.PacketHeader] = []
        self.payloads: list[bytes] = []
        self.acknowledged: list[wire.GuidanceAck] = []
        self.finished: list[wire.Finished] = []
        self.commands: list[wire.Command] = []
        self.pictures: dict[str, tuple[wire.PictureEncoding, bytes]] = {}
        self.peers: list[Peer] = []
        self.refusal: RefusedError | None = None
        self.consumes = True
        self._lanes: dict[str, Lane] = {}
        self.receiver = Receiver(self, bind="tcp://127.0.0.1:*")
        self.endpoint = self.receiver.endpoint

    async def go_away(self) -> None:
        await self.receiver.close()

    def come_back(self) -> None:
        self.receiver = Receiver(self, bind=self.endpoint)

    def of(self, stream: str, epoch: int | None = None) -> list[tuple[wire.PacketHeader, bytes]]:
        """Packets of a stream in their order of arrival."""
        pairs = zip(self.headers, self.payloads, strict=True)
        return [
            (header, payload)
            for header, payload in pairs
            if header.stream == stream and epoch in (None, header.epoch)
        ]

    async def has(self, stream: str, count: int, epoch: int | None = None) -> None:
        """Wait until so many packets of a stream have arrived."""
        await self.until(lambda: len(self.of(stream, epoch)) >= count)

    async def until(self, true: Callable[[], Any]) -> None:
        """Wait until something holds; 30 seconds are a hung test, not a measurement."""
        async with asyncio.timeout(30):
            while not true():  # noqa: ASYNC110 (what is awaited has no event)
                await asyncio.sleep(0.005)

    async def admit(self, hello: wire.Hello) -> Admission:
        if self.refusal is not None:
            raise self.refusal
        if not self.hellos or hello.instance != self.hellos[-1].instance:
            self.epoch += 1
        self.hellos.append(hello)
        for name in hello.streams:
            old = self._lanes.get(name)
            self._lanes[name] = (
                old.handed_over(epoch=self.epoch)
                if old
                else Lane(spec=STREAMS[name], epoch=self.epoch)
            )
        lanes = {name: self._lanes[name] for name in hello.streams}
        return Admission(session_id=self.session, epoch=self.epoch, lanes=lanes)

    def on_joined(self, peer: Peer) -> None:
        self.peers.append(peer)

    def on_packet(self, peer: Peer, lane: Lane, header: wire.PacketHeader, payload: Buffer) -> bool:
        self.headers.append(header)
        self.payloads.append(bytes(payload))
        return self.consumes

    def on_guidance_ack(self, peer: Peer, ack: wire.GuidanceAck) -> None:
        self.acknowledged.append(ack)

    def on_command(self, peer: Peer, command: wire.Command) -> None:
        self.commands.append(command)

    def picture(self, peer: Peer, picture: str) -> tuple[wire.PictureEncoding, bytes] | None:
        return self.pictures.get(picture)

    def on_finished(self, peer: Peer, finished: wire.Finished) -> None:
        self.finished.append(finished)
        for lane in peer.lanes.values():
            self.receiver.acknowledge(lane, lane.received_sequence)
        if finished.close:
            self.receiver.dismiss(peer)

    def on_left(self, peer: Peer) -> None:
        self.peers.remove(peer)


@pytest.fixture
async def server() -> AsyncIterator[RecordingServer]:
    recording = RecordingServer()
    yield recording
    await recording.go_away()
