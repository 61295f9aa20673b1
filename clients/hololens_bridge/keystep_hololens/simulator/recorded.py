"""What of a recording a simulated headset can say on hl2ss's ports, epoch by epoch.

An epoch is one life of the headset's clock. What hl2ss has no place for, and what it asks for and
the recording lacks, is put into words (`RecordedSession.remarks`); nothing is made up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keystep_capture.errors import DataError
from keystep_capture.recording import RecordedPacket, Recording
from keystep_hololens.device_streams import RESEARCH_MODE_SENSORS, SENSORS
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.simulator.recorded_constants import (
    SensorConstants,
    check_packet,
    read_constants,
)
from keystep_hololens.simulator.recorded_payloads import device_time_hns
from keystep_hololens.simulator.recorded_remarks import remarks_on, why_not

_TICK_NS = 100
_END_SEARCH_NS = (10**10, 10**12)
"""How far from the end the last packet is looked for, before all of the file is read."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedEpoch:
    """One life of the headset in a recording.

    Attributes:
        path: The recording.
        epoch: Its number there.
        start_hns, end_hns: First and last device time of what can be played.
        first: Each playable stream's first packet.
        constants: Of Research Mode sensors, by port, where they are known.
    """

    path: Path
    epoch: int
    start_hns: int
    end_hns: int
    first: Mapping[str, RecordedPacket]
    constants: Mapping[Port, SensorConstants]

    @property
    def sensors(self) -> Mapping[str, tuple[str, ...]]:
        """The sensors that have something to play, with their streams that are recorded."""
        there = {
            sensor: tuple(stream for stream in streams if stream in self.first)
            for sensor, streams in SENSORS.items()
        }
        return {sensor: streams for sensor, streams in there.items() if streams}

    @property
    def has_research_mode(self) -> bool:
        """Whether any sensor needs Research Mode."""
        return not RESEARCH_MODE_SENSORS.isdisjoint(self.sensors)

    def packets(self, *streams: str, start_hns: int | None = None) -> Iterator[RecordedPacket]:
        """Packets of these streams by device time, read from the file as they are asked for.

        Args:
            streams: Which.
            start_hns: First device time wanted; None: from the beginning.

        Raises:
            DataError: The recording is damaged; one line with the file and where.
        """
        start_ns = None if start_hns is None else start_hns * _TICK_NS - _TICK_NS // 2
        with Recording(self.path) as recording:
            for packet in recording.packets(
                streams, order="device_time", epoch=self.epoch, start_ns=start_ns
            ):
                check_packet(self.path, packet)
                yield packet

    def rate_hz(self, stream: str, *, of_first: int = 32) -> float:
        """A stream's rate, from the median distance of its first packets; 0 of one packet."""
        times_ns = []
        for packet in self.packets(stream):
            times_ns.append(packet.header.device_time_ns)
            if len(times_ns) == of_first:
                break
        period_ns = float(np.median(np.diff(times_ns))) if len(times_ns) > 1 else 0.0
        return 1e9 / period_ns if period_ns > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedSession:
    """What a headset can play of a recording.

    Attributes:
        path: The recording.
        epochs: The headset's lives that have something to play, in order.
        remarks: What hl2ss has no place for, or the recording lacks, a line each.
    """

    path: Path
    epochs: tuple[RecordedEpoch, ...]
    remarks: tuple[str, ...]


def survey(path: Path) -> RecordedSession:
    """Look at what a recording has for a headset to play.

    Reads the index, each stream's first packet and the sensors' constants.

    Raises:
        DataError: It is no recording, is damaged, or has nothing that hl2ss has a port for.
        OSError: It cannot be read.
    """
    with Recording(path) as recording:
        remarks = [f"damaged: {damage}" for damage in recording.damage]
        surveyed = [_survey_epoch(recording, epoch, remarks) for epoch in recording.epochs]
    epochs = tuple(epoch for epoch in surveyed if epoch is not None)
    said = tuple(dict.fromkeys(remarks))
    if not epochs:
        why = "; ".join(said) or "it has no packets"
        raise DataError(f"{path}: nothing that a headset could play: {why}")
    return RecordedSession(path=path, epochs=epochs, remarks=said)


def _survey_epoch(recording: Recording, epoch: int, remarks: list[str]) -> RecordedEpoch | None:
    """Look at one epoch, adding to the remarks; None where nothing of it can be played."""
    first: dict[str, RecordedPacket] = {}
    for stream in [lane.stream for lane in recording.lanes if lane.epoch == epoch]:
        packet = next(recording.packets((stream,), epoch=epoch), None)
        if packet is not None:
            check_packet(recording.path, packet)
            first[stream] = packet
    told = first.pop("calibration", None) is not None
    for stream in list(first):
        if reason := why_not(first[stream]):
            remarks.append(f"{stream}: {reason}")
            del first[stream]
    if not first:
        return None
    constants = read_constants(recording, epoch, first, told=told)
    remarks.extend(remarks_on(first, constants))
    by_time = recording.packets(tuple(first), order="device_time", epoch=epoch)
    return RecordedEpoch(
        path=recording.path,
        epoch=epoch,
        start_hns=device_time_hns(next(by_time).header.device_time_ns),
        end_hns=device_time_hns(_end_ns(recording, epoch, tuple(first))),
        first=first,
        constants=constants,
    )


def _end_ns(recording: Recording, epoch: int, streams: tuple[str, ...]) -> int:
    """The last device time, looked for from the end on so that a long file is not read whole."""
    span = recording.device_span_ns
    assert span is not None
    for back_ns in (*_END_SEARCH_NS, None):
        start_ns = None if back_ns is None else span[1] - back_ns
        found = recording.packets(streams, epoch=epoch, start_ns=start_ns)
        if (last := max((p.header.device_time_ns for p in found), default=None)) is not None:
            return last
    raise DataError(f"{recording.path}: epoch {epoch} has no packets")
