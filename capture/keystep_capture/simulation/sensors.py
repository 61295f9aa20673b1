"""Head, gaze and hands as the headset reports them: rates, noise, drop-outs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from keystep_capture.simulation.geometry import Array, quaternions
from keystep_capture.simulation.hands import RADII_M
from keystep_capture.simulation.looking import Looking, wandering
from keystep_capture.simulation.motion import RATE_HZ, Movement
from keystep_capture.simulation.seeding import generator
from keystep_capture.simulation.timing import Clocks, Stamps, stamp
from keystep_capture.wire import PROTOCOL, PacketHeader

_HAND_REACH_M = 0.85
_HAND_TANGENT = (1.15, 0.95)  # the hand cameras see further than the colour camera


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """A packet as the wire has it, and when the server took it."""

    header: PacketHeader
    payload: bytes
    receive_time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What all packets of a session share."""

    session: str
    seed: int
    person: str
    clocks: Clocks

    def header(
        self, stream: str, encoding: str, sequence: int, stamps: Stamps, idx: int
    ) -> PacketHeader:
        """A header without the fields that only some streams have."""
        return PacketHeader(
            protocol=PROTOCOL,
            session=self.session,
            epoch=0,
            stream=stream,
            sequence=sequence,
            device_time_ns=int(stamps.device[idx]),
            send_time_ns=int(stamps.sent[idx]),
            encoding=encoding,
        )


def sensed(source: Source, looking: Looking, movement: Movement, rate_hz: int) -> Iterator[Packet]:
    """All packets of head, gaze and hands, in order of arrival."""
    step = RATE_HZ // rate_hz
    samples = np.arange(0, len(movement.times_s), step)
    packets = [
        *_head(source, looking, movement, samples),
        *_gaze(source, looking, movement, samples),
        *_hands(source, looking, movement, samples),
    ]
    yield from sorted(packets, key=lambda packet: packet.receive_time_ns)


def _packets(
    source: Source,
    stream: str,
    encoding: str,
    rows: NDArray[np.float32],
    valid: NDArray[np.int64],
    times_s: Array,
    lost: float,
) -> Iterator[Packet]:
    """One packet a row; a few are lost on the way, which the sequence shows."""
    stamps = stamp(times_s, source.clocks, 0.5, 9.0, source.seed, source.person, stream)
    rng = generator(source.seed, source.person, stream, "lost")
    arrives = rng.random(len(rows)) >= lost
    for idx in np.flatnonzero(arrives).tolist():
        base = source.header(stream, encoding, idx, stamps, idx)
        seen = int(valid[idx])
        yield Packet(
            header=msgspec.structs.replace(base, valid=seen),
            payload=rows[idx].astype("<f4").tobytes() if seen else b"",
            receive_time_ns=int(stamps.received[idx]),
        )


def _head(
    source: Source, looking: Looking, movement: Movement, samples: NDArray[np.int64]
) -> Iterator[Packet]:
    poses = looking.world_from_head[samples].astype(np.float32).reshape(len(samples), 16)
    valid = np.ones(len(samples), np.int64)
    times_s = movement.times_s[samples]
    return _packets(source, "head", "pose_f32", poses, valid, times_s, 0.001)


def _gaze(
    source: Source, looking: Looking, movement: Movement, samples: NDArray[np.int64]
) -> Iterator[Packet]:
    rng = generator(source.seed, source.person, "gaze", "blinks")
    times_s = movement.times_s
    blink = _bursts(times_s, 0.25, 0.14, rng)
    origin = looking.world_from_head[:, :3, 3]
    rows = np.concatenate([origin, looking.gaze_direction], axis=1)[samples].astype(np.float32)
    valid = (~blink[samples]).astype(np.int64)
    return _packets(source, "gaze", "ray_f32", rows, valid, times_s[samples], 0.001)


def _hands(
    source: Source, looking: Looking, movement: Movement, samples: NDArray[np.int64]
) -> Iterator[Packet]:
    rng = generator(source.seed, source.person, "hands", "noise")
    head = looking.world_from_head[samples]
    valid = np.zeros(len(samples), np.int64)
    rows = np.zeros((len(samples), 2, 26, 9), np.float32)
    palms = [hand.joints[samples, 0] for hand in movement.hands]
    close = np.linalg.norm(palms[0] - palms[1], axis=1) < 0.09
    for side, hand in enumerate(movement.hands):
        shake = wandering(len(movement.times_s), 3, 0.08, rng)[samples] * 0.002
        noise = rng.normal(0.0, 0.0008, (len(samples), 26, 3))
        rows[:, side, :, :4] = quaternions(hand.rotations[samples])
        rows[:, side, :, 4:7] = hand.joints[samples] + shake[:, None] + noise
        rows[:, side, :, 7] = RADII_M
        gone = _bursts(movement.times_s, 0.04, 0.4, rng)[samples]
        gone |= close & _bursts(movement.times_s, 0.6, 0.5, rng)[samples]
        valid |= (_in_sight(head, palms[side]) & ~gone).astype(np.int64) << side
        rows[gone, side, :, 8] = 1.0
    flat = rows.reshape(len(samples), -1)
    times_s = movement.times_s[samples]
    return _packets(source, "hands", "joints_f32", flat, valid, times_s, 0.002)


def _in_sight(head: Array, point: Array) -> NDArray[np.bool_]:
    local = np.einsum("tji,tj->ti", head[:, :3, :3], point - head[:, :3, 3])
    away = -local[:, 2]
    inside = (np.abs(local[:, 0]) < away * _HAND_TANGENT[0]) & (
        np.abs(local[:, 1]) < away * _HAND_TANGENT[1]
    )
    return np.asarray(inside & (away > 0.05) & (np.linalg.norm(local, axis=1) < _HAND_REACH_M))


def _bursts(
    times_s: Array, per_s: float, length_s: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Stretches in which nothing is measured, at random times, shape (T,)."""
    result = np.zeros(len(times_s), bool)
    count = rng.poisson(per_s * times_s[-1])
    for start in rng.uniform(0.0, times_s[-1], count):
        length = float(np.clip(rng.lognormal(np.log(length_s), 0.4), 0.05, 2.0))
        result[(times_s >= start) & (times_s < start + length)] = True
    return result
