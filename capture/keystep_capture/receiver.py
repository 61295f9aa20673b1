"""The server's end of the wire: a ROUTER socket, hellos, credit, heartbeat.

It checks every message against docs/wire.md, counts what it drops by reason, and hands good packets
to a `Handler`, which owns the sessions. One bad peer costs itself only.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import NamedTuple

import structlog
import zmq

from keystep_capture import sockets, wire
from keystep_capture.access import Guard
from keystep_capture.clock import Clock
from keystep_capture.entrance import Entrance
from keystep_capture.errors import KeystepError, RefusedError, WireError
from keystep_capture.peers import Buffer, Handler, Lane, Peer
from keystep_capture.streams import MAX_PAYLOAD_BYTES

HEARTBEAT_S = 1.0
SILENCE_S = 5.0
MAX_PEERS = 64
SOCKET_HIGH_WATER_MARK = 64
HANG_UP_S = 0.2
MAX_REFUSAL_CHARACTERS = 768  # a header holds them whatever the script
_NOBLOCK = int(zmq.NOBLOCK)
_RCVMORE = int(zmq.RCVMORE)
_SRCFD = int(zmq.SRCFD)
SMALL_PAYLOAD_BYTES = 16 * 1024
"""Below this, copying a payload out of libzmq is cheaper than keeping its frame."""

log = structlog.get_logger(__name__)


MAX_SEQUENCE_GAP = 10_000_000
MAX_TIME_GAP_NS = 24 * 3600 * 1_000_000_000
"""A packet farther from its stream than these is no loss or pause but a wrong number."""
MAX_DEVICE_TIME_NS = 4_102_444_800 * 1_000_000_000
"""The year 2100 on a clock that counts from 1970; one that counts from a start is far below."""


def _taken_over(lane: Lane) -> WireError:
    """Why a lane takes no more: another has it, or nobody has and a hello gets it back."""
    while lane.successor is not None:
        lane = lane.successor
    if lane.peer is None:
        return WireError(f"{lane.spec.name!r} is free again: say hello", "hello_required")
    return WireError(f"another connection took over {lane.spec.name!r}", "taken_over")


class _Caller(NamedTuple):
    """Where a hello came from: connection, ZAP user (None without a guard), descriptor."""

    routing_id: bytes
    user: str | None
    fd: int


class Receiver:
    """Accepts peers on a ROUTER socket and feeds a `Handler`; single-threaded, on the loop."""

    def __init__(
        self,
        handler: Handler,
        *,
        bind: str,
        guard: Guard | None = None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """Bind the socket.

        Args:
            handler: Gets what is received.
            bind: ZeroMQ endpoint, e.g. `tcp://127.0.0.1:8041`.
            guard: The server's keys and the devices it lets in; needed off loopback, where the link
                is then encrypted.
            clock: Monotonic clock, ns.

        Raises:
            ConfigError: The endpoint is in use or malformed, or off loopback without a guard.
        """
        self._handler = handler
        self._clock = clock
        self._guard = guard
        self.entrance = Entrance(
            zmq.ROUTER,
            bind,
            guard=guard,
            options={
                zmq.LINGER: 500,
                zmq.ROUTER_MANDATORY: 1,
                # Up to twice the largest payload is answered; beyond, libzmq cuts the connection.
                zmq.MAXMSGSIZE: 2 * MAX_PAYLOAD_BYTES,
                zmq.RCVHWM: SOCKET_HIGH_WATER_MARK,
                zmq.SNDHWM: 1024,
            },
            known=lambda: {peer.fd for peer in self.peers.values()},
        )
        self._socket, self.endpoint = self.entrance.socket, self.entrance.endpoint
        self.peers: dict[bytes, Peer] = {}
        self.dropped: Counter[str] = Counter()
        self._admitting: dict[bytes, asyncio.Task[None]] = {}
        self._next_hellos: dict[bytes, tuple[_Caller, wire.Hello]] = {}
        self._hanging_up: set[int] = set()
        self._strangers_ns: dict[tuple[bytes, str], int] = {}
        loop = asyncio.get_running_loop()
        self._drain = sockets.Drain(self._socket, loop, self._take_one)
        self._heartbeat = loop.create_task(self._beat(), name="wire heartbeat")
        if guard is not None:
            guard.members.on_change.append(self._drop_revoked)

    async def close(self) -> None:
        """Say goodbye to nobody, close the socket; peers will dial again."""
        self._heartbeat.cancel()
        for task in self._admitting.values():
            task.cancel()
        await asyncio.gather(self._heartbeat, *self._admitting.values(), return_exceptions=True)
        self._drain.close()
        if self._guard is not None:
            self._guard.members.on_change.remove(self._drop_revoked)
        self.entrance.close()

    # -- taking messages -------------------------------------------------------------------------

    def _take_one(self) -> None:
        recv, get = self._socket.recv, self._socket.get
        routing_id: bytes = recv(_NOBLOCK)  # a ROUTER puts it before at least one frame
        frame = recv(_NOBLOCK, copy=False)
        header, fd = frame.bytes, int(frame.get(_SRCFD))
        user = str(frame.get("User-Id")) if self._guard is not None else None
        self.entrance.spoke.add(fd)
        peer = self.peers.get(routing_id)
        if peer is not None:
            if peer.user == user:
                peer.fd = fd
            else:  # another user took the routing id of a connection that is gone
                self._leave(peer)
                peer = None
        payload: Buffer | None = None
        if get(_RCVMORE):
            if peer is not None and peer.large_payloads:
                payload = recv(_NOBLOCK, copy=False).buffer
            else:
                payload = recv(_NOBLOCK)
            if get(_RCVMORE):
                self._discard_rest()
                self._refuse(routing_id, WireError("message has more than two frames", "frames"))
                return
        if user is not None and self._name_of(user) is None:
            self._refuse_revoked(routing_id, fd)
            return
        try:
            message = wire.decode_client_message(header)
            if type(message) is wire.PacketHeader:
                self._take_packet(routing_id, peer, message, payload)
            elif payload is not None:
                raise WireError("only packet messages have a payload frame", "frames")
            elif message is None:
                self.dropped["unknown_type"] += 1
            else:
                self._take_control(_Caller(routing_id, user, fd), peer, message)
        except WireError as error:
            self._refuse(routing_id, error)

    def _discard_rest(self) -> None:
        while self._socket.get(_RCVMORE):
            self._socket.recv(_NOBLOCK, copy=False)

    def _take_packet(
        self,
        routing_id: bytes,
        peer: Peer | None,
        header: wire.PacketHeader,
        payload: Buffer | None,
    ) -> None:
        if peer is None:
            raise WireError("say hello first: this connection is not known", "hello_required")
        if payload is None:
            raise WireError("packet without its payload frame", "frames")
        if header.session != peer.session_id:
            raise WireError(
                f"packet for session {header.session!r}, this connection is in {peer.session_id!r}",
                "other_session",
            )
        if header.epoch != peer.epoch:
            raise WireError(
                f"packet of epoch {header.epoch}, this connection is in {peer.epoch}", "epoch"
            )
        lane = peer.lanes.get(header.stream)
        if lane is None:
            wire.check_payload(header, len(payload))  # says so if the stream is not even known
            raise WireError(
                f"stream {header.stream!r} was not announced in hello", "stream_not_announced"
            )
        if lane.peer is not peer:
            raise _taken_over(lane)
        if lane.accepted >= lane.granted:
            raise WireError(f"no credit left for {header.stream!r}", "no_credit")
        lane.accepted += 1
        try:
            self._enter(lane, header, len(payload))
        except WireError:
            lane.refused += 1
            self.consumed(lane)  # its sender has spent credit on it
            raise
        peer.large_payloads = len(payload) > SMALL_PAYLOAD_BYTES
        peer.active = True
        if self._handler.on_packet(peer, lane, header, payload):
            self.consumed(lane)

    def _enter(self, lane: Lane, header: wire.PacketHeader, payload_bytes: int) -> None:
        """Check a packet against the table of streams and its place in the sequence."""
        wire.check_payload(header, payload_bytes)
        gap = header.sequence - lane.received_sequence - 1
        if gap < 0:
            raise WireError(
                f"{header.stream} sequence went from {lane.received_sequence} to {header.sequence}",
                "sequence_backwards",
            )
        newest_ns = lane.newest_device_time_ns
        if gap > MAX_SEQUENCE_GAP or (
            newest_ns is not None and abs(header.device_time_ns - newest_ns) > MAX_TIME_GAP_NS
        ):
            raise WireError(
                f"{header.stream} jumps from sequence {lane.received_sequence} at {newest_ns} ns "
                f"to {header.sequence} at {header.device_time_ns} ns: if the new place is right, "
                "begin a new epoch (a hello with a new instance)",
                "jump",
            )
        if header.device_time_ns > MAX_DEVICE_TIME_NS:
            raise WireError(
                f"{header.stream} packet is of {header.device_time_ns} ns, expected at most "
                f"{MAX_DEVICE_TIME_NS} (the year 2100 in nanoseconds from 1970)",
                "device_time",
            )
        lane.lost += gap
        lane.received_sequence = header.sequence
        lane.byte_count += payload_bytes
        lane.newest_device_time_ns = header.device_time_ns

    def consumed(self, lane: Lane) -> None:
        """One packet of a lane was worked off: give its credit back, in halves of the window."""
        lane.consumed += 1
        while lane.successor is not None:  # it pays the debt of the lane that sends now
            lane = lane.successor
            lane.debt -= 1
        if lane.credit_limit - lane.granted >= lane.spec.window_packets // 2:
            self._grant(lane)

    def acknowledge(self, lane: Lane, sequence: int) -> None:
        """All of a lane up to a sequence is written down: its sender need not keep it."""
        if sequence <= lane.acknowledged_sequence:
            return
        lane.acknowledged_sequence = sequence
        while lane.successor is not None and lane.successor.epoch == lane.epoch:
            lane = lane.successor
            lane.acknowledged_sequence = max(lane.acknowledged_sequence, sequence)
        self._grant(lane)

    def _grant(self, lane: Lane) -> None:
        if lane.peer is None:
            return
        lane.granted = lane.credit_limit
        self.send(
            lane.peer,
            wire.Credit(
                protocol=wire.PROTOCOL,
                stream=lane.spec.name,
                granted=lane.granted,
                received_sequence=lane.received_sequence,
                acknowledged_sequence=lane.acknowledged_sequence,
            ),
        )

    def _take_control(
        self, caller: _Caller, peer: Peer | None, message: wire.ClientMessage
    ) -> None:
        now_ns = self._clock()
        if isinstance(message, wire.Hello):
            self._begin_admission(caller, message)
            return
        if peer is None:
            raise WireError("say hello first: this connection is not known", "hello_required")
        peer.heard_ns = now_ns
        if isinstance(message, wire.ClockReply):
            self._take_clock_reply(peer, message, now_ns)
        elif isinstance(message, wire.DeviceClock):
            if message.epoch != peer.epoch or not 1e-3 <= message.rate <= 1e3:
                raise WireError(
                    f"device_clock of epoch {message.epoch} with rate {message.rate}; expected "
                    f"epoch {peer.epoch} and a rate of 0.001 to 1000",
                    "device_clock",
                )
            peer.device_clock = message
        elif isinstance(message, wire.GuidanceAck):
            self._handler.on_guidance_ack(peer, message)
        elif isinstance(message, wire.Command):
            self._handler.on_command(peer, message)
        elif isinstance(message, wire.PictureRequest):
            self._send_picture(peer, message.picture)
        elif isinstance(message, wire.Finished):
            peer.finished = True
            self._handler.on_finished(peer, message)

    def _send_picture(self, peer: Peer, picture: str) -> None:
        """Answer a request; one at a time, since a peer that does not read would fill our memory.

        Raises:
            WireError: There is no such picture, or the last one is still under way.
        """
        if peer.picture_under_way:
            raise WireError("the last picture is still under way: ask again", "picture_pace")
        found = self._handler.picture(peer, picture)
        if found is None:
            raise WireError(f"this session has no picture {picture!r}", "unknown_picture")
        encoding, image = found
        wire.check_picture(len(image))
        peer.picture_under_way = True
        message = wire.Picture(protocol=wire.PROTOCOL, picture=picture, encoding=encoding)
        self.send(peer, message, image)

    def _take_clock_reply(self, peer: Peer, reply: wire.ClockReply, now_ns: int) -> None:
        if not peer.answered_request_id < reply.request_id <= peer.next_request_id:
            return  # each request is answered once
        peer.answered_request_id = reply.request_id
        peer.sender_dropped = reply.dropped
        peer.picture_under_way = False  # what was sent before the request was read
        stepped = peer.clock.add(
            send_ns=reply.server_time_ns,
            remote_receive_ns=reply.receive_time_ns,
            remote_reply_ns=reply.reply_time_ns,
            receive_ns=now_ns,
        )
        if stepped:
            log.warning(
                "a source's clock or ours stepped: its offset is measured anew",
                session=peer.session_id,
                device=peer.hello.device,
            )

    # -- hellos ----------------------------------------------------------------------------------

    def _begin_admission(self, caller: _Caller, hello: wire.Hello) -> None:
        routing_id = caller.routing_id
        if routing_id in self._admitting:
            self._next_hellos[routing_id] = (caller, hello)  # the newest one is answered next
            return
        if len(self.peers) + len(self._admitting) >= MAX_PEERS and routing_id not in self.peers:
            raise WireError(f"the server has {MAX_PEERS} connections already", "too_many_peers")
        task = asyncio.get_running_loop().create_task(self._admit(caller, hello))
        self._admitting[routing_id] = task
        task.add_done_callback(lambda _: self._end_admission(routing_id))

    def _end_admission(self, routing_id: bytes) -> None:
        self._admitting.pop(routing_id, None)
        following = self._next_hellos.pop(routing_id, None)
        if following is not None and not self._socket.closed:
            self._begin_admission(*following)

    async def _admit(self, caller: _Caller, hello: wire.Hello) -> None:
        routing_id = caller.routing_id
        try:
            self._check_owner(caller, hello)
            admission = await self._handler.admit(hello)
        except KeystepError as error:
            self.dropped["hello_refused"] += 1
            reason = error.reason if isinstance(error, WireError) else "hello_refused"
            self._answer(
                routing_id,
                wire.Refused(
                    protocol=wire.PROTOCOL,
                    reason=reason,
                    message=str(error)[:MAX_REFUSAL_CHARACTERS],
                    fatal=isinstance(error, RefusedError) or not isinstance(error, WireError),
                ),
            )
            return
        except Exception:  # a fault of ours: the client may try again, the others go on
            log.exception("a hello was not answered", device=hello.device)
            self.dropped["server_error"] += 1
            message = "the server failed to answer this hello; its log says why"
            self._answer(
                routing_id,
                wire.Refused(protocol=wire.PROTOCOL, reason="server_error", message=message),
            )
            return
        if caller.user is not None and self._name_of(caller.user) is None:
            self._refuse_revoked(routing_id, caller.fd)  # while the hello was being answered
            return
        self._leave(self.peers.get(routing_id))
        peer = Peer(
            routing_id=routing_id,
            user=caller.user,
            fd=caller.fd,
            hello=hello,
            session_id=admission.session_id,
            epoch=admission.epoch,
            lanes=admission.lanes,
            heard_ns=self._clock(),
        )
        self.peers[routing_id] = peer
        for lane in admission.lanes.values():
            lane.peer = peer
            lane.granted = lane.credit_limit
        self._answer(
            routing_id,
            wire.Welcome(
                protocol=wire.PROTOCOL,
                session=peer.session_id,
                epoch=peer.epoch,
                heartbeat_s=HEARTBEAT_S,
                streams={
                    name: wire.StreamGrant(
                        granted=lane.granted,
                        received_sequence=lane.received_sequence,
                        acknowledged_sequence=lane.acknowledged_sequence,
                    )
                    for name, lane in admission.lanes.items()
                },
            ),
        )
        self._handler.on_joined(peer)
        self._request_clock(peer)  # last: it finds out if the peer has gone meanwhile

    def dismiss(self, peer: Peer) -> None:
        """Let a peer go whose session is closed; it may say hello for another."""
        self.send(peer, wire.Closed(protocol=wire.PROTOCOL, session=peer.session_id))
        self._leave(peer)

    def _leave(self, peer: Peer | None) -> None:
        if peer is None or self.peers.get(peer.routing_id) is not peer:
            return
        del self.peers[peer.routing_id]
        for lane in peer.lanes.values():
            if lane.peer is peer:
                lane.peer = None
        self._handler.on_left(peer)

    # -- keys ------------------------------------------------------------------------------------

    def _name_of(self, user: str) -> str | None:
        """The device behind a ZAP user; None: its key was revoked."""
        return None if self._guard is None else self._guard.members.name_of(user)

    def _check_owner(self, caller: _Caller, hello: wire.Hello) -> None:
        """Refuse a hello that names another device than the one whose key it came under."""
        if caller.user is None:
            return
        owner = self._name_of(caller.user)
        if owner != hello.device:
            raise RefusedError(
                f"this key belongs to the device {owner!r}, the hello names {hello.device!r}",
                "other_device",
            )

    def _refuse_revoked(self, routing_id: bytes, fd: int) -> None:
        """Tell a connection whose key was revoked, and hang up on it."""
        self.dropped["revoked"] += 1
        if fd in self._hanging_up:
            return
        self._hanging_up.add(fd)
        self._answer(
            routing_id,
            wire.Refused(
                protocol=wire.PROTOCOL,
                reason="revoked",
                message="the key of this device was revoked; `keystep device add` makes a new one",
                fatal=True,
            ),
        )
        self._leave(self.peers.get(routing_id))
        # The refusal leaves first; until then whatever comes is dropped as well.
        asyncio.get_running_loop().call_later(HANG_UP_S, self._hang_up, fd)

    def _hang_up(self, fd: int) -> None:
        self._hanging_up.discard(fd)
        self.entrance.hang_up(fd)

    def _drop_revoked(self) -> None:
        """Let go of the peers whose keys were revoked just now."""
        for peer in list(self.peers.values()):
            if peer.user is not None and self._name_of(peer.user) is None:
                log.warning("key revoked", session=peer.session_id, device=peer.hello.device)
                self._refuse_revoked(peer.routing_id, peer.fd)

    # -- sending ---------------------------------------------------------------------------------

    def send(self, peer: Peer, message: wire.ServerMessage, payload: bytes | None = None) -> bool:
        """Send a message to a peer; False if it is gone or does not read."""
        if self._answer(peer.routing_id, message, payload):
            return True
        self._leave(peer)
        return False

    def _answer(
        self, routing_id: bytes, message: wire.ServerMessage, payload: bytes | None = None
    ) -> bool:
        frames = (routing_id, wire.encode(message))
        try:
            self._socket.send_multipart(
                frames if payload is None else (*frames, payload), zmq.NOBLOCK
            )
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN, zmq.ENOTSOCK):
                raise  # those mean: gone, does not read, this receiver is closed
            return False
        finally:
            self._drain.poke()
        return True

    def _refuse(self, routing_id: bytes, error: WireError) -> None:
        """Count what was wrong and tell the sender, at most once a second for each reason."""
        self.dropped[error.reason] += 1
        now_ns = self._clock()
        peer = self.peers.get(routing_id)
        if peer is not None:
            peer.dropped[error.reason] += 1
        told = self._strangers_ns if peer is None else peer.refused_ns
        key = (routing_id, error.reason)
        told_ns = told.get(key)
        if told_ns is not None and now_ns - told_ns < 1_000_000_000:
            return
        if len(told) >= MAX_PEERS:
            told.clear()
        told[key] = now_ns
        if peer is not None:
            log.warning(
                "message dropped",
                session=peer.session_id,
                device=peer.hello.device,
                reason=error.reason,
                error=str(error),
            )
        else:
            log.warning("message of a stranger dropped", reason=error.reason, error=str(error))
        fatal = error.reason == "protocol_version"
        message = str(error)[:MAX_REFUSAL_CHARACTERS]
        self._answer(
            routing_id,
            wire.Refused(protocol=wire.PROTOCOL, reason=error.reason, message=message, fatal=fatal),
        )

    # -- heartbeat -------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            now_ns = self._clock()
            for peer in list(self.peers.values()):
                if peer.active:
                    peer.active, peer.heard_ns = False, now_ns
                if now_ns - peer.heard_ns > SILENCE_S * 1e9:
                    log.info("peer is silent", session=peer.session_id, device=peer.hello.device)
                    self._leave(peer)
                    continue
                for lane in peer.lanes.values():
                    if lane.credit_limit > lane.granted:
                        self._grant(lane)
                self._request_clock(peer)
            await asyncio.sleep(HEARTBEAT_S)

    def _request_clock(self, peer: Peer) -> None:
        peer.next_request_id += 1
        self.send(
            peer,
            wire.ClockRequest(
                protocol=wire.PROTOCOL,
                request_id=peer.next_request_id,
                server_time_ns=self._clock(),
            ),
        )
