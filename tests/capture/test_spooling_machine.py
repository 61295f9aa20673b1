"""Outboxes with a spool under any order of events, against what a server should get; no socket."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keystep_capture import spooling, wire
from keystep_capture.outbox import Pending
from keystep_capture.source import Life
from keystep_capture.spool import Spool
from keystep_capture.spooling import SpoolingOutboxes
from keystep_capture.streams import STREAMS

NAMES = ("rgb", "gaze")
Packet = tuple[str, int]  # stream and sequence


def payload_of(stream: str, number: int) -> bytes:
    return f"{stream} {number}".encode().ljust(24)


class Server:
    """What a server has of one life of a source, taken and written down."""

    def __init__(self) -> None:
        self.taken: list[Packet] = []
        self.written_count = 0

    def sequence(self, stream: str, *, written: bool = False) -> int:
        """The newest packet of a stream, taken or written down."""
        packets = self.taken[: self.written_count] if written else self.taken
        return max((number for name, number in packets if name == stream), default=-1)


class SpoolingMachine(RuleBasedStateMachine):
    """Nothing that was offered is lost, doubled or swapped, whoever is killed and when."""

    @initialize()
    def start(self) -> None:
        self.silence = structlog.testing.capture_logs()
        self.silence.__enter__()
        self.small = patch.object(spooling, "AHEAD_PACKETS", 4)  # so that few packets reach it
        self.small.start()
        self.folder = TemporaryDirectory()
        self.servers: dict[str, Server] = {}
        self.offered: dict[str, list[Packet]] = {}
        self.numbers = dict.fromkeys(NAMES, 0)
        self.life_count = 0
        self.is_up = False
        self.credit = dict.fromkeys(NAMES, 0)
        self.sent = dict.fromkeys(NAMES, 0)
        self.boxes = self.run_source()

    def run_source(self) -> SpoolingOutboxes:
        self.spool = Spool(Path(self.folder.name), segment_bytes=600)
        life = self.new_life()
        self.present = life.instance
        boxes = SpoolingOutboxes(life, self.spool)
        self.sending = boxes.life.instance
        return boxes

    def new_life(self) -> Life:
        self.life_count += 1
        self.numbers = dict.fromkeys(NAMES, 0)
        return Life(instance=f"i{self.life_count}", session="ses", streams=NAMES)

    @property
    def server(self) -> Server:
        return self.servers.setdefault(self.sending, Server())

    def transmit(self, stream: str, pending: Pending) -> bool:
        assert self.is_up
        assert pending.payload == payload_of(stream, pending.sequence)
        self.server.taken.append((stream, pending.sequence))
        self.sent[stream] += 1
        assert self.sent[stream] <= self.credit[stream]
        return True

    def pump(self) -> None:
        if not self.is_up:
            return
        self.boxes.send(self.transmit)
        life = self.boxes.next_life(lambda: None)
        if life is not None:
            self.sending = life.instance
            self.say_hello()

    def say_hello(self) -> None:
        self.boxes.disconnect()
        server = self.server
        self.sent = dict.fromkeys(NAMES, 0)
        self.credit = dict.fromkeys(NAMES, 2)
        streams = {
            name: wire.StreamGrant(
                granted=2,
                received_sequence=server.sequence(name),
                acknowledged_sequence=server.sequence(name, written=True),
            )
            for name in NAMES
        }
        self.is_up = True
        welcome = wire.Welcome(
            protocol=wire.PROTOCOL, session="ses", epoch=1, heartbeat_s=1.0, streams=streams
        )
        self.boxes.welcome(welcome, epoch=1)
        self.pump()

    def grant(self, stream: str, more: int) -> None:
        self.credit[stream] += more
        granted = min(self.credit[stream], self.sent[stream] + STREAMS[stream].window_packets)
        credit = wire.Credit(
            protocol=wire.PROTOCOL,
            stream=stream,
            granted=granted,
            received_sequence=self.server.sequence(stream),
            acknowledged_sequence=self.server.sequence(stream, written=True),
        )
        self.boxes.grant(credit)
        self.pump()

    @rule(streams=st.lists(st.sampled_from(NAMES), min_size=1, max_size=12))
    def offer(self, streams: list[str]) -> None:
        for stream in streams:
            number = self.numbers[stream]
            self.numbers[stream] += 1
            pending = Pending(
                device_time_ns=number,
                payload=payload_of(stream, number),
                encoding="h264" if stream == "rgb" else "ray_f32",
                keyframe=True,
            )
            assert self.boxes.offer(stream, pending, 0)
            assert pending.sequence == number
            self.offered.setdefault(self.present, []).append((stream, number))
            self.pump()

    @rule()
    def connect(self) -> None:
        self.say_hello()

    @rule()
    def lose_the_connection(self) -> None:
        self.is_up = False
        self.boxes.disconnect()

    @precondition(lambda self: self.is_up)
    @rule(stream=st.sampled_from(NAMES), more=st.integers(0, 6))
    def give_credit(self, stream: str, more: int) -> None:
        self.grant(stream, more)

    @precondition(lambda self: self.is_up)
    @rule(share=st.floats(0, 1))
    def write_down(self, share: float) -> None:
        server = self.server
        waiting = len(server.taken) - server.written_count
        server.written_count += round(share * waiting)
        for stream in NAMES:
            self.grant(stream, 0)

    @rule()
    def kill_the_server(self) -> None:
        self.lose_the_connection()
        for server in self.servers.values():
            del server.taken[server.written_count :]

    @rule()
    def restart_the_headset(self) -> None:
        life = self.new_life()
        self.present = life.instance
        if self.boxes.restart(life):
            self.sending = life.instance
            if self.is_up:
                self.say_hello()

    @precondition(lambda self: not self.is_up)
    @rule()
    def kill_the_source(self) -> None:
        """Once it knows that the server is gone, all it holds is on the disk."""
        before, left = self.folder, self.spool
        self.folder = TemporaryDirectory()
        shutil.copytree(before.name, self.folder.name, dirs_exist_ok=True)
        left.close()
        before.cleanup()
        self.boxes = self.run_source()

    @invariant()
    def what_was_taken_is_the_beginning_of_what_was_offered(self) -> None:
        for instance, server in self.servers.items():
            assert server.taken == self.offered.get(instance, [])[: len(server.taken)]

    @invariant()
    def nothing_was_dropped(self) -> None:
        assert set(self.boxes.counts(lambda box: box.dropped_count).values()) == {0}

    def teardown(self) -> None:
        if not hasattr(self, "boxes"):
            return
        self.say_hello()
        for _ in range(3 * self.life_count + sum(map(len, self.offered.values()))):
            for stream in NAMES:
                self.grant(stream, 6)
            self.write_down(1.0)
        assert self.boxes.are_acknowledged
        taken = {name: server.taken for name, server in self.servers.items() if server.taken}
        assert taken == self.offered
        assert list(Path(self.folder.name).glob("*.spool")) == []
        self.spool.close()
        self.folder.cleanup()
        self.small.stop()
        self.silence.__exit__(None, None, None)


TestSpooling = SpoolingMachine.TestCase
TestSpooling.settings = settings(max_examples=150, stateful_step_count=40)
