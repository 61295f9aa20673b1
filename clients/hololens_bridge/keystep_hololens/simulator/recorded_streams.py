"""The packets of one connection to a headset that plays a recording. All of it blocks, in a thread.

A packet is due when the headset's clock shows the time at which it was captured.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TypeVar

import av.error

from keystep_capture.errors import DataError, VideoError, WireError
from keystep_capture.recording import RecordedPacket
from keystep_capture.video import GapFilter
from keystep_hololens.device_streams import SENSORS
from keystep_hololens.hl2ss import depth
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss.personal_video import VideoProfile
from keystep_hololens.hl2ss.protocol import encode_packet
from keystep_hololens.hl2ss.spatial_input import encode_spatial_input
from keystep_hololens.simulator import recorded_payloads
from keystep_hololens.simulator.encoder import EncoderSettings, PictureEncoder
from keystep_hololens.simulator.packets import TimedPacket
from keystep_hololens.simulator.recorded import RecordedEpoch
from keystep_hololens.simulator.recorded_payloads import Pose, device_time_hns

_T = TypeVar("_T")
HOLD_HNS = 500_000
"""How long a part of spatial input that was recorded at times of its own is repeated: 50 ms."""

Moment = dict[str, RecordedPacket]
Payload = Callable[[RecordedPacket], bytes]
PoseOf = Callable[[RecordedPacket], Pose]
EncodeDepth = Callable[[depth.DepthFrame], bytes]


class RecordedStream:
    """Packets made one by one, of what is read meanwhile."""

    def __init__(self, path: Path, packets: Iterator[TimedPacket]) -> None:
        """Hand out `packets`, made from the recording at `path`."""
        self._path, self._packets = path, packets

    def next(self) -> TimedPacket | None:
        """Make the next packet; None at the end.

        Raises:
            DataError: The recording is damaged, or holds what cannot be sent.
            OSError: It cannot be read.
        """
        try:
            return next(self._packets, None)
        except (WireError, VideoError, av.error.FFmpegError) as error:
            raise DataError(f"{self._path}: {error}") from error
        except (struct.error, OverflowError) as error:
            raise DataError(f"{self._path}: a value does not fit hl2ss: {error}") from error

    def close(self) -> None:
        """Close the recording."""
        close = getattr(self._packets, "close", None)
        if close is not None:
            close()


def each(
    packets: Iterable[RecordedPacket],
    payload: Payload,
    pose: PoseOf | None = None,
    *,
    time_shift_hns: int = 0,
    spanned_hns: Callable[[RecordedPacket], int] = lambda packet: 0,
) -> Iterator[TimedPacket]:
    """Send every packet.

    Args:
        packets: By device time.
        payload: What to send of one.
        pose: Its pose; None in mode 0.
        time_shift_hns: Added to the time stamps that are sent.
        spanned_hns: How long after its time stamp a packet is whole.
    """
    for packet in packets:
        time_hns = device_time_hns(packet.header.device_time_ns)
        stamp_hns = max(0, time_hns + time_shift_hns)
        framed = encode_packet(stamp_hns, payload(packet), None if pose is None else pose(packet))
        yield TimedPacket(time_hns + spanned_hns(packet), framed, packet.header.keyframe)


def intact_video(packets: Iterable[RecordedPacket], encoding: str) -> Iterator[RecordedPacket]:
    """Leave out what nobody can decode: all between a gap, or the beginning, and a key frame."""
    gaps = GapFilter(independent=encoding not in recorded_payloads.VIDEO_ENCODINGS)
    for packet in packets:
        header = packet.header
        if header.encoding == encoding and gaps.admit(header.sequence, keyframe=header.keyframe):
            yield packet


def moments(packets: Iterable[RecordedPacket]) -> Iterator[tuple[int, Moment]]:
    """Put together what streams say of one tick of the clock; gives the tick and the packets."""
    tick_hns, moment = 0, Moment()
    for packet in packets:
        time_hns = device_time_hns(packet.header.device_time_ns)
        if moment and (time_hns != tick_hns or packet.header.stream in moment):
            yield tick_hns, moment
            moment = {}
        tick_hns, moment[packet.header.stream] = time_hns, packet
    if moment:
        yield tick_hns, moment


def spatial_input(packets: Iterable[RecordedPacket]) -> Iterator[TimedPacket]:
    """Head, gaze and hands together, as hl2ss sends them.

    A part that has nothing of this moment is what it last was, for up to 50 ms: hl2ss has no way
    to leave a part out, and to say that it does not hold would be wrong.
    """
    held: dict[str, tuple[int, RecordedPacket]] = {}
    sent: bytes | None = None
    for time_hns, moment in moments(packets):
        held |= {stream: (time_hns, packet) for stream, packet in moment.items()}
        parts = (
            held[name][1] if name in held and time_hns - held[name][0] <= HOLD_HNS else None
            for name in ("head", "gaze", "hands")
        )
        sent = encode_spatial_input(recorded_payloads.spatial_input(*parts), sent)
        yield TimedPacket(time_hns, encode_packet(time_hns, sent))


def depth_frames(
    epoch: RecordedEpoch,
    sensor: str,
    encode: EncodeDepth,
    pose: PoseOf | None,
    *,
    start_hns: int | None,
    keep_one_in: int,
) -> Iterator[TimedPacket]:
    """Both planes of a depth camera in one payload; the sensor's own clock is not recorded."""
    streams = epoch.sensors[sensor]
    main, beside = SENSORS[sensor]
    together = moments(epoch.packets(*streams, start_hns=start_hns))
    for time_hns, moment in one_in(together, keep_one_in):
        frame = recorded_payloads.depth_frame(moment.get(main), moment.get(beside))
        one = moment[min(moment)]
        framed = encode_packet(time_hns, encode(frame), None if pose is None else pose(one))
        yield TimedPacket(time_hns, framed)


def long_throw_payload(frame: depth.DepthFrame) -> bytes:
    """Make long throw's payload."""
    return depth.encode_long_throw(frame, 0)


class AhatEncoder:
    """Makes AHAT's payloads as a client asked for them; video loses, as the headset's does."""

    def __init__(self, config: rm.AhatConfig) -> None:
        self._encoder = None
        if config.profile != VideoProfile.RAW:
            self._encoder = PictureEncoder(
                EncoderSettings(
                    profile=VideoProfile(config.profile),
                    width=rm.AHAT_WIDTH,
                    height=rm.AHAT_HEIGHT,
                    frame_rate_hz=Fraction(rm.AHAT_FPS, config.divisor),
                    bitrate_bps=config.bitrate_bps,
                    gop_size=config.gop_size,
                )
            )

    def __call__(self, frame: depth.DepthFrame) -> bytes:
        """Make a payload."""
        if self._encoder is None:
            return depth.encode_ahat_payload(depth.encode_raw_ahat(frame), 0)
        return depth.encode_ahat_payload(
            self._encoder.encode_planes(depth.pack_ahat_picture(frame)), 0
        )


def one_in(items: Iterable[_T], count: int) -> Iterator[_T]:
    """The first of every so many."""
    return islice(items, 0, None, count)


def thinning(recorded_hz: float, asked_hz: float) -> int:
    """One in how many packets to send for a rate; never fewer than were asked for.

    A recording is often of fewer pictures than the sensor takes (the bridge asks for every third
    of AHAT's): those are not thinned again.
    """
    return max(1, round(recorded_hz / asked_hz)) if asked_hz > 0 else 1
