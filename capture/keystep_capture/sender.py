"""A source's end of the wire: keeps one session going through outages.

A `Sender` says hello, sends packets as credit and the table of streams allow, answers the heartbeat
and, when the server is silent or restarted, goes on in the same session: what the server has not
written down is sent again, in the order in which it was offered.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Literal

import structlog
import zmq

from keystep_capture import wire
from keystep_capture.clock import Clock
from keystep_capture.errors import RefusedError, StateError, WireError
from keystep_capture.key_files import DeviceKey
from keystep_capture.link import Context, Link, Payload
from keystep_capture.outbox import Pending
from keystep_capture.outboxes import Behind, Outboxes
from keystep_capture.source import Callbacks, Life, Source
from keystep_capture.spool import Spool
from keystep_capture.spooling import SpoolingOutboxes

__all__ = ["Callbacks", "Payload", "Sender", "Source"]

log = structlog.get_logger(__name__)

SILENCE_S = 5.0
FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 5.0

State = Literal["connecting", "open", "finished", "closed"]


class Sender:
    """Sends one source's streams to a server; single-threaded, on the loop."""

    def __init__(
        self,
        source: Source,
        *,
        server: str,
        instance: str,
        key: DeviceKey | None = None,
        callbacks: Callbacks | None = None,
        spool: Spool | None = None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """Prepare; nothing is opened before `run`.

        Args:
            source: Who sends what.
            server: The server's endpoint, e.g. `tcp://127.0.0.1:8041`.
            instance: Random word, new for each start of the program and of the headset.
            key: What the device's key file holds; needed off loopback.
            callbacks: What to tell the caller.
            spool: Where packets go that the server cannot take now, instead of being dropped; what
                it holds of an earlier run is sent first. Closed by `run`.
            clock: Monotonic clock, ns; `send_time_ns` is read from it.
        """
        self._source = source
        self._server = server
        self._key = key
        self._callbacks = callbacks or Callbacks()
        self._clock = clock
        self._life = Life(instance=instance, session=source.session, streams=source.streams)
        self._outboxes = Outboxes(source.streams, replay=source.replay)
        if spool is not None:
            self._outboxes = spooling = SpoolingOutboxes(self._life, spool)
            self._life = spooling.life
        self._session = self._life.session
        self._epoch = -1
        self._welcomed = False
        self._hello_outdated = False
        self._link: Link | None = None
        self._failure: WireError | None = None
        self._changed = asyncio.Event()
        self._finish_wanted = False
        self._close_wanted = False
        self.state: State = "connecting"

    # -- what the caller does --------------------------------------------------------------------

    @property
    def session(self) -> str | None:
        """The session's id, once the server has named it."""
        return self._session

    @property
    def epoch(self) -> int:
        """The epoch the server has named; -1 before."""
        return self._epoch

    @property
    def is_welcome(self) -> bool:
        """Whether the server is there and has taken this source in."""
        return self._welcomed

    def dropped(self) -> dict[str, int]:
        """Packets dropped here so far, per stream."""
        return self._outboxes.counts(lambda box: box.dropped_count)

    def sent(self) -> dict[str, int]:
        """Packets sent so far, per stream."""
        return self._outboxes.counts(lambda box: box.sent_count)

    def behind(self) -> Behind:
        """How much waits here for the server."""
        return self._outboxes.behind()

    def offer(
        self,
        stream: str,
        device_time_ns: int,
        payload: Payload,
        *,
        encoding: str,
        keyframe: bool = False,
        width: int | None = None,
        height: int | None = None,
        intrinsics: wire.Intrinsics | None = None,
        pose: list[float] | None = None,
        valid: int = -1,
        frame_idx: int | None = None,
        depth_unit_m: float | None = None,
        upright_turns: int = 0,
        calibrates: str | None = None,
        rig_from_sensor: list[float] | None = None,
        sequence: int = -1,
    ) -> bool:
        """Send a packet now, or do what the stream's policy says when that cannot be.

        The payload must not be changed afterwards: it is sent without a copy. A replay gives the
        packet's recorded `sequence`; without it packets are numbered here.

        Returns:
            True if it was sent or kept, False if it was dropped (and counted).

        Raises:
            KeyError: The stream is not one of the source's.
            WireError: The payload is too large, or the number was given out before.
        """
        pending = Pending(
            device_time_ns=device_time_ns,
            payload=payload,
            encoding=encoding,
            keyframe=keyframe,
            width=width,
            height=height,
            intrinsics=intrinsics,
            pose=pose,
            valid=valid,
            frame_idx=frame_idx,
            depth_unit_m=depth_unit_m,
            upright_turns=upright_turns,
            calibrates=calibrates,
            rig_from_sensor=rig_from_sensor,
            sequence=sequence,
        )
        kept = self._outboxes.offer(stream, pending, self._clock())
        if self._welcomed:
            self._outboxes.send_of(stream, self._transmit)
        return kept

    def has_room(self, stream: str) -> bool:
        """Whether a packet offered now would be sent at once."""
        return self._welcomed and self._outboxes.has_room(stream)

    async def room(self, stream: str) -> None:
        """Wait until there is credit for a packet of this stream: how a replay loses nothing.

        Raises:
            StateError: The session was closed meanwhile.
            WireError: The server refused this source for good.
        """
        while not self.has_room(stream):
            self._raise_if_over()
            await self._wait_for_change()

    async def acknowledged(self) -> None:
        """Wait until the server has written down all that was offered.

        Raises:
            StateError: The session was closed meanwhile.
            WireError: The server refused this source for good.
        """
        while not self._outboxes.are_acknowledged:
            self._raise_if_over()
            await self._wait_for_change()

    def tell_device_clock(
        self, *, device_time_ns: int, bridge_time_ns: int, uncertainty_ns: int, rate: float
    ) -> None:
        """Pass on how the headset's clock stands to this machine's."""
        if self._welcomed and self._outboxes.are_current:
            self._send(
                wire.DeviceClock(
                    protocol=wire.PROTOCOL,
                    epoch=self._epoch,
                    device_time_ns=device_time_ns,
                    bridge_time_ns=bridge_time_ns,
                    uncertainty_ns=uncertainty_ns,
                    rate=rate,
                )
            )

    def acknowledge_guidance(
        self,
        revision: int,
        *,
        displayed: bool,
        displayed_time_ns: int | None = None,
        reason: str = "",
    ) -> None:
        """Say that a revision was taken and whether a headset showed it.

        Args:
            revision: The guidance's.
            displayed: Whether it is on show.
            displayed_time_ns: Since when, on this source's clock; by default now.
            reason: A word for why it is not on show.
        """
        if self._welcomed:
            now_ns = self._clock()
            self._send(
                wire.GuidanceAck(
                    protocol=wire.PROTOCOL,
                    revision=revision,
                    displayed_time_ns=now_ns if displayed_time_ns is None else displayed_time_ns,
                    displayed=displayed,
                    reason=reason,
                )
            )

    def request_picture(self, picture: str) -> None:
        """Ask for a picture that guidance named; it may not come, so ask again."""
        if self._welcomed:
            self._send(wire.PictureRequest(protocol=wire.PROTOCOL, picture=picture))

    def command(self, command: str, command_id: str) -> None:
        """Pass on what the wearer asks for; send it with the same id until it is answered."""
        if self._welcomed:
            self._send(wire.Command(protocol=wire.PROTOCOL, command=command, command_id=command_id))

    def restart(self, instance: str) -> None:
        """Begin a new epoch: the headset was restarted, its clock and numbers began anew."""
        source = self._source
        life = Life(instance=instance, session=source.session, streams=source.streams)
        if self._outboxes.restart(life):
            self._begin_epoch(life)

    def _begin_epoch(self, life: Life) -> None:
        self._life = life
        self._session = life.session or self._session
        self._epoch = -1  # what is offered from now on belongs to the epoch the server will name
        if self._link is not None and not self._welcomed:
            self._hello_outdated = True  # its welcome is on the way and must not be mistaken
        else:
            self._say_hello()

    async def finish(self, *, close: bool, timeout_s: float = 60.0) -> None:
        """Send what is still held, say so and, with `close`, have the session closed.

        Returns when the server has written all of it down.

        Raises:
            StateError: The server did not take it all within `timeout_s`.
            WireError: The server refused this source for good.
        """
        if self.state == "finished" and close and not self._close_wanted:
            self.state = "open"  # what was said did not ask for the close
        self._finish_wanted, self._close_wanted = True, close
        self._maybe_finished()
        try:
            async with asyncio.timeout(timeout_s):
                while not self._is_finished(close=close):
                    if self._failure is not None:
                        raise self._failure
                    await self._wait_for_change()
        except TimeoutError:
            raise StateError(
                f"the server did not finish the session within {timeout_s:g} s "
                f"(state: {self.state})"
            ) from None

    async def run(self) -> None:
        """Keep the connection until the session is closed; returns then.

        Raises:
            RefusedError: The server refused this source for good.
            ProtocolError: The server speaks another major version.
        """
        context: Context = zmq.Context(io_threads=1)
        backoff_s, told = FIRST_BACKOFF_S, False
        try:
            while not self._is_over():
                self._connect(context)
                was_open = await self._watch()
                self._disconnect()
                if self._failure is not None:
                    raise self._failure
                if self._is_over():
                    return
                backoff_s = FIRST_BACKOFF_S if was_open else min(2 * backoff_s, LAST_BACKOFF_S)
                if was_open or not told:  # once for each outage
                    hint = "it may be down, ask for a key, or not know this one"
                    log.warning(
                        "no answer from the server, dialling on", server=self._server, hint=hint
                    )
                told = True
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
        finally:
            self._disconnect()
            self._outboxes.close()
            await asyncio.to_thread(context.term)

    # -- connection ------------------------------------------------------------------------------

    def _connect(self, context: Context) -> None:
        # libzmq hands room back in halves of its mark, so twice the credit never meets it
        windows = sum(box.spec.window_packets for box in self._outboxes)
        try:
            self._link = Link(
                self,
                context=context,
                server=self._server,
                key=self._key,
                send_limit=16 + 2 * windows,
                clock=self._clock,
            )
        except RefusedError as error:
            self._failure = error
            raise

    def _disconnect(self) -> None:
        self.on_disconnected()
        if self._link is not None:
            self._link.close()
            self._link = None

    def on_connected(self) -> None:
        """Say who sends what: the link's server does not know it yet."""
        self._say_hello()

    def on_disconnected(self) -> None:
        """Wait for the next welcome."""
        self._welcomed = False
        self._outboxes.disconnect()

    async def _watch(self) -> bool:
        """Stay while the server is heard; whether it ever welcomed us."""
        was_open = False
        while self.state != "closed" and self._failure is None:
            was_open = was_open or self._welcomed
            if self._link is None or self._clock() - self._link.heard_ns > SILENCE_S * 1e9:
                break
            self._expire()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.25):
                    await self._wait_for_change()
        return was_open

    def _say_hello(self) -> None:
        self._welcomed = self._hello_outdated = False
        self._outboxes.disconnect()
        source = self._source
        self._send(
            wire.Hello(
                protocol=wire.PROTOCOL,
                device=source.device,
                client=source.client,
                instance=self._life.instance,
                kind=source.kind,
                streams=list(self._life.streams),
                session=self._session,
                task=source.task,
                procedure=source.procedure,
                method=source.method,
                replay=source.replay,
                time_scale=source.time_scale,
            )
        )

    def _send(self, message: wire.ClientMessage) -> None:
        if self._link is not None:
            self._link.send(message)  # where it cannot be sent, the heartbeat will tell

    def _transmit(self, stream: str, pending: Pending) -> bool:
        assert self._link is not None
        assert self._session is not None
        header = pending.header(
            session=self._session, epoch=self._epoch, stream=stream, send_time_ns=self._clock()
        )
        return self._link.send_packet(header, pending.payload)

    # -- taking messages -------------------------------------------------------------------------

    def on_unreadable(self, error: WireError) -> None:
        """End, if the server speaks another protocol."""
        self._failure = error if error.reason == "protocol_version" else self._failure
        self._notify()

    def on_message(self, message: wire.ServerMessage | None, payload: bytes) -> None:
        """Act on what the server said."""
        if isinstance(message, wire.Credit):
            self._take_credit(message)
        elif isinstance(message, wire.ClockRequest):
            self._answer_clock(message)
        elif isinstance(message, wire.Welcome):
            self._take_welcome(message)
        elif isinstance(message, wire.Guidance):
            self._callbacks.on_guidance(message)
        elif isinstance(message, wire.Picture):
            self._callbacks.on_picture(message, payload)
        elif isinstance(message, wire.CommandResult):
            self._callbacks.on_command_result(message)
        elif isinstance(message, wire.Finish):
            self._callbacks.on_finish(message)
            self._finish_wanted = True
            self._maybe_finished()
        elif isinstance(message, wire.Closed):
            self._end()
        elif isinstance(message, wire.Refused):
            self._take_refusal(message)

    def _take_welcome(self, welcome: wire.Welcome) -> None:
        if self._hello_outdated:
            self._say_hello()
            return
        self._outboxes.welcome(welcome, epoch=self._epoch)
        self._session, self._epoch = welcome.session, welcome.epoch
        self._expire()
        self._welcomed = True
        if self.state in ("connecting", "finished"):
            self.state = "open"
        self._callbacks.on_session(welcome)
        self._flush()

    def _take_credit(self, credit: wire.Credit) -> None:
        if self._welcomed:
            self._outboxes.grant(credit)
            self._flush()

    def _flush(self) -> None:
        self._outboxes.send(self._transmit)
        if (life := self._outboxes.next_life(self._say_finished)) is not None:
            self._begin_epoch(life)
        self._maybe_finished()
        self._notify()

    def _answer_clock(self, request: wire.ClockRequest) -> None:
        received_ns = self._clock() if self._link is None else self._link.heard_ns
        self._flush()
        self._send(
            wire.ClockReply(
                protocol=wire.PROTOCOL,
                request_id=request.request_id,
                server_time_ns=request.server_time_ns,
                receive_time_ns=received_ns,
                reply_time_ns=self._clock(),
                dropped=self.dropped(),
            )
        )
        self._expire()

    def _expire(self) -> None:
        self._outboxes.expire(self._clock())

    def _end(self) -> None:
        self._outboxes.end(is_all_sent=self.state == "finished")
        self.state = "closed"
        self._notify()

    def _take_refusal(self, refused: wire.Refused) -> None:
        self._callbacks.on_refused(refused)
        if (
            refused.reason == "session_closed"
            and self._finish_wanted
            and self._outboxes.are_current
        ):
            self._end()
        elif refused.fatal and (life := self._outboxes.set_aside(refused)) is not None:
            self._life, self._session, self._epoch = life, life.session, -1
            self._say_hello()
        elif refused.fatal:
            self._failure = RefusedError(refused.message, refused.reason)
        elif refused.reason == "hello_required":
            if self._welcomed:  # else it is said already, and a second one would not be answered
                self._say_hello()
        else:
            log.warning(
                "the server refused a message", reason=refused.reason, error=refused.message
            )
        self._notify()

    def _maybe_finished(self) -> None:
        if not (self._finish_wanted and self._welcomed) or self.state in ("finished", "closed"):
            return
        if self._outboxes.are_empty:
            self._say_finished(close=self._close_wanted)
            self.state = "finished"
            self._notify()

    def _say_finished(self, *, close: bool = False) -> None:
        last = self._outboxes.counts(lambda box: box.last_sequence)
        self._send(wire.Finished(protocol=wire.PROTOCOL, last_sequences=last, close=close))

    # -- waiting ---------------------------------------------------------------------------------

    def _notify(self) -> None:
        self._changed.set()

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _is_finished(self, *, close: bool) -> bool:
        if self.state == "closed":
            return True
        return self.state == "finished" and not close and self._outboxes.are_acknowledged

    def _is_over(self) -> bool:
        return self.state == "closed"

    def _raise_if_over(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self.state == "closed":
            raise StateError("the session was closed by the server")
