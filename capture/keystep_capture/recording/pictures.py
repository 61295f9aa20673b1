"""Pictures of a recording: at given moments, or tick by tick with the other streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import structlog
from av.video.frame import VideoFrame

from keystep_capture.align import Sample, Tick, TickAligner
from keystep_capture.errors import DataError, VideoError, WireError
from keystep_capture.payloads import read_array, read_image
from keystep_capture.recording.entries import RecordedPacket
from keystep_capture.recording.reader import Recording
from keystep_capture.streams import STREAMS
from keystep_capture.video import GapFilter, PacketDecoder
from keystep_capture.wire import PacketHeader

_IMAGES = frozenset({"png16", "u16", "grey8"})

log = structlog.get_logger(__name__)


class VideoReader:
    """Decodes a stream's packets in their order; one object per recording and stream."""

    def __init__(self) -> None:
        """Start before the first packet."""
        self._decoder: tuple[tuple[int, str], PacketDecoder, GapFilter] | None = None

    def decode(self, header: PacketHeader, payload: bytes) -> VideoFrame | None:
        """The packet's picture; None where it cannot be decoded (a gap, damage)."""
        key = (header.epoch, header.encoding)
        if self._decoder is None or self._decoder[0] != key:
            encoding = STREAMS[header.stream].encodings[header.encoding]
            gaps = GapFilter(independent=not encoding.video)
            self._decoder = key, PacketDecoder(header.encoding), gaps
        _, decoder, gaps = self._decoder
        if not gaps.admit(header.sequence, keyframe=header.keyframe):
            return None
        try:
            return decoder.decode(payload)
        except VideoError:
            gaps.break_off()
            return None


def read_frames(
    paths: Iterable[Path], wanted: Iterable[tuple[int, int]], *, stream: str = "rgb"
) -> Iterator[tuple[tuple[int, int], VideoFrame]]:
    """Decode the pictures of given moments.

    Args:
        paths: Parts or folders; what is damaged is passed over with a warning.
        wanted: (epoch, device_time_ns) of packets in the recording.
        stream: The stream whose pictures are wanted.

    Yields:
        The moment and its picture, in the order of the recording; moments that are not there or
        cannot be decoded are left out.
    """
    missing = set(wanted)
    reader = VideoReader()  # kept over parts: a video may go on in the middle of a group
    for path in paths:
        try:
            recording = Recording(path)
        except DataError as error:
            log.warning("a recording is passed over", error=str(error))
            continue
        with recording:
            for packet in recording.packets((stream,), skip_damage=True):
                if not missing:
                    return
                frame = reader.decode(packet.header, packet.payload)
                moment = (packet.header.epoch, packet.header.device_time_ns)
                if frame is not None and moment in missing:
                    missing.discard(moment)
                    yield moment, frame
            for damage in recording.damage:
                log.warning("a recording is damaged", damage=str(damage))


def read_frame_at(
    recording: Recording, device_time_ns: int, *, epoch: int, stream: str = "rgb"
) -> tuple[int, VideoFrame] | None:
    """The picture that was on show at a time: the last one until then, else the first after it.

    Args:
        recording: Open for reading; what is damaged is passed over.
        device_time_ns: The time.
        epoch: The epoch wanted.
        stream: A stream of pictures.

    Returns:
        The picture's device time and the picture; None where none can be decoded.
    """
    start_ns = recording.keyframe_before(stream, device_time_ns, epoch=epoch)
    reader = VideoReader()
    found: tuple[int, VideoFrame] | None = None
    for packet in recording.packets((stream,), epoch=epoch, start_ns=start_ns, skip_damage=True):
        time_ns = packet.header.device_time_ns
        if time_ns > device_time_ns and found is not None:
            break
        frame = reader.decode(packet.header, packet.payload)
        if frame is not None:
            found = time_ns, frame
    return found


def read_ticks(
    recording: Recording,
    *,
    epoch: int,
    leading: str = "rgb",
    rate_hz: float = 10.0,
    start_ns: int | None = None,
    end_ns: int | None = None,
    skip_damage: bool = False,
    watch: Callable[[RecordedPacket], None] | None = None,
) -> Iterator[Tick]:
    """A recording's ticks, as a live session would have had them.

    Args:
        recording: Open for reading.
        epoch: The epoch wanted.
        leading: The stream whose samples make the ticks.
        rate_hz: Ticks a second of device time.
        start_ns: First tick's device time at the earliest; decoding begins at the key frame before.
        end_ns: Device time of packets no more read.
        skip_damage: Pass over what is damaged.
        watch: Shown every packet on its way, for what ticks do not hold (samples between them).

    Yields:
        Ticks in order. Samples of videos are `VideoFrame`s, all others arrays (None where the
        sensor had nothing or it cannot be read), or bytes where the encoding has no numbers.

    Raises:
        DamagedError: Something is damaged.
    """
    streams = [lane.stream for lane in recording.lanes if lane.epoch == epoch]
    if leading not in streams:
        return
    aligner = TickAligner(leading=leading, others=streams, rate_hz=rate_hz)
    videos: dict[str, VideoReader] = {}
    begin_ns = start_ns
    if start_ns is not None:
        before = recording.keyframe_before(leading, start_ns, epoch=epoch)
        begin_ns = before if before is not None else start_ns
    for packet in recording.packets(
        epoch=epoch, start_ns=begin_ns, end_ns=end_ns, skip_damage=skip_damage
    ):
        header = packet.header
        if watch is not None:
            watch(packet)
        value: object = packet
        if _is_picture(packet):  # decoded at once, since the next one may need it
            value = videos.setdefault(header.stream, VideoReader()).decode(header, packet.payload)
        if header.stream == leading:
            too_early = start_ns is not None and header.device_time_ns < start_ns
            if too_early or value is None:
                continue
        for tick in aligner.push(header.stream, header.device_time_ns, value):
            yield _read(tick)
    yield from map(_read, aligner.flush())


def _is_picture(packet: RecordedPacket) -> bool:
    header = packet.header
    encoding = STREAMS[header.stream].encodings[header.encoding]
    return encoding.video or header.encoding == "jpeg"


def _read(tick: Tick) -> Tick:
    """A tick whose packets are read; only those that stand in one are."""
    samples = {}
    for name, sample in tick.samples.items():
        if sample is not None and isinstance(sample.value, RecordedPacket):
            value = _value_of(sample.value)
            sample = Sample(device_time_ns=sample.device_time_ns, value=value)
        samples[name] = sample
    return Tick(index=tick.index, device_time_ns=tick.device_time_ns, samples=samples)


def _value_of(packet: RecordedPacket) -> object:
    header = packet.header
    if header.valid == 0:
        return None
    try:
        if STREAMS[header.stream].encodings[header.encoding].numeric is not None:
            return read_array(header, packet.payload)
        if header.encoding in _IMAGES:
            return read_image(header, packet.payload)
    except WireError:
        return None
    return packet.payload
