"""The streams of the simulated room's sensors, packet by packet. All of it blocks, in a thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from keystep_hololens.hl2ss import depth
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss.conventions import (
    Matrix,
    column_matrix,
    head_pose,
    transform_points,
    unit_rays,
)
from keystep_hololens.hl2ss.eye_tracker import EyeSample, encode_eye_sample
from keystep_hololens.hl2ss.inertial import SAMPLES_PER_PACKET, ImuSamples, encode_imu
from keystep_hololens.hl2ss.personal_video import VideoProfile
from keystep_hololens.hl2ss.picture_decoder import is_keyframe
from keystep_hololens.hl2ss.protocol import HNS_PER_SECOND, Port, encode_packet
from keystep_hololens.hl2ss.spatial_input import (
    HAND_JOINT_COUNT,
    EyeRay,
    HandPose,
    SpatialInput,
    encode_spatial_input,
)
from keystep_hololens.hl2ss.vlc import VlcMetadata
from keystep_hololens.simulator.encoder import EncoderSettings, PictureEncoder
from keystep_hololens.simulator.packets import TimedPacket
from keystep_hololens.simulator.rig import sensor_in_world
from keystep_hololens.simulator.room import (
    GRAVITY_MPS2,
    HAND_RADIUS_M,
    MAGNETIC_FIELD,
    Room,
    View,
)

IMU_RATES_HZ = {
    Port.RM_IMU_ACCELEROMETER: 1116.0,
    Port.RM_IMU_GYROSCOPE: 6615.0,
    Port.RM_IMU_MAGNETOMETER: 49.5,
}
"""Samples per second: those of a packet times the sheet's packet rates."""
LONG_THROW_REACH_M = 7.5
AHAT_REACH_M = 1.0
EXPOSURE_NS, GAIN = 5_000_000, 100
_EYE_HEIGHT_M, _PUPIL_HALF_DISTANCE_M = -0.02, 0.032
_STEP_S = 1e-3


PoseAt = Callable[[float], NDArray[np.float32]]
"""Seconds of playback to a pose on the wire; 16 zeros where it is not known."""


class Reading(Protocol):
    """What one sensor says at one moment."""

    def payload(self, frame_idx: int, time_hns: int, time_s: float) -> bytes:
        """Make a payload: frame number, device time, seconds of playback."""


@dataclass(slots=True, kw_only=True)
class SensedStream:
    """The packets of one connection to a simulated sensor.

    Packets are on a grid from the playback's origin; the period is asked for before each, since a
    depth camera's rate falls. Frame numbers count from the origin at the nominal rate.

    Attributes:
        end_hns: Device time at which playback ends; None: never.
        pose_at: Seconds of playback to the packet's pose; None in mode 0.
        covers_period: The packet is due at the end of its period (batched samples).
        time_shift_hns: Added to the time stamps.
    """

    reading: Reading
    period_hns: Callable[[], int]
    origin_hns: int
    now_hns: int
    end_hns: int | None = None
    pose_at: PoseAt | None = None
    covers_period: bool = False
    time_shift_hns: int = 0
    key_frame: Callable[[bytes], bool] = lambda payload: True
    _time_hns: int = field(init=False)

    def __post_init__(self) -> None:
        period = self.period_hns()
        ahead = max(0, -(-(self.now_hns - self.origin_hns) // period))
        self._time_hns = self.origin_hns + ahead * period

    def next(self) -> TimedPacket | None:
        """Make the next packet; None at the end of playback."""
        time_hns, period_hns = self._time_hns, self.period_hns()
        if self.end_hns is not None and time_hns >= self.end_hns:
            return None
        self._time_hns += period_hns
        time_s = (time_hns - self.origin_hns) / HNS_PER_SECOND
        frame_idx = (time_hns - self.origin_hns) // period_hns
        payload = self.reading.payload(frame_idx, time_hns, time_s)
        pose = None if self.pose_at is None else self.pose_at(time_s)
        return TimedPacket(
            time_hns + period_hns * self.covers_period,
            encode_packet(max(0, time_hns + self.time_shift_hns), payload, pose),
            self.key_frame(payload),
        )

    def close(self) -> None:
        """Nothing is open."""


class _Camera:
    """Looks at the room through one camera's pixels."""

    def __init__(self, room: Room, kind: Port, step: int = 1) -> None:
        self.room = room
        self._constants = room.rig.cameras[kind]
        self._rays = unit_rays(self._constants.uv2xy[::step, ::step])

    def look(self, time_s: float) -> View:
        """Return what is seen; nothing where the head is not known."""
        world_from_head = self.room.head_at(time_s)
        if world_from_head is None:
            empty = np.zeros(self._rays.shape[:2], np.float32)
            return View(empty, empty)
        extrinsics = self._constants.extrinsics
        return self.room.look(
            sensor_in_world(world_from_head, self.room.rig, extrinsics), self._rays, time_s
        )


def _sensor_ticks_ns(time_hns: int) -> int:
    return time_hns * 100


class VlcReading:
    """A grey tracking camera's pictures; looked at through every other pixel, for speed."""

    def __init__(self, room: Room, kind: Port, config: rm.VlcConfig) -> None:
        self._camera = _Camera(room, kind, step=2)
        self._encoder = _encoder(config, rm.VLC_WIDTH, rm.VLC_HEIGHT, rm.VLC_FPS)
        chroma = np.full((rm.VLC_HEIGHT // 2, rm.VLC_WIDTH), 128, np.uint8)
        self._chroma = chroma

    def payload(self, frame_idx: int, time_hns: int, time_s: float) -> bytes:
        """Make a picture, sensor-oriented, and its metadata."""
        shade = self._camera.look(time_s).shade
        noise = self._camera.room.noise(frame_idx).standard_normal(shade.shape, np.float32)
        half: NDArray[np.uint8] = np.clip(shade * 255 + noise, 0, 255).astype(np.uint8)
        grey = half.repeat(2, axis=0).repeat(2, axis=1)
        if self._encoder is None:
            encoded: bytes = grey.tobytes()
        else:
            encoded = self._encoder.encode_planes(np.concatenate([grey, self._chroma]))
        ticks = _sensor_ticks_ns(time_hns)
        metadata = VlcMetadata(sensor_ticks_ns=ticks, exposure_ns=EXPOSURE_NS, gain=GAIN)
        return encoded + metadata.encode()


class LongThrowReading:
    """The far depth camera's frames."""

    def __init__(self, room: Room) -> None:
        self._camera = _Camera(room, Port.RM_DEPTH_LONGTHROW)

    def payload(self, frame_idx: int, time_hns: int, time_s: float) -> bytes:
        """Make a PNG of both planes."""
        room, view = self._camera.room, self._camera.look(time_s)
        frame = depth.DepthFrame(
            room.noisy_depth_mm(view, frame_idx, reach_m=LONG_THROW_REACH_M),
            room.active_brightness(view),
        )
        return depth.encode_long_throw(frame, _sensor_ticks_ns(time_hns))


class AhatReading:
    """The near depth camera's frames; beyond its reach they are 0 here (a headset's wrap)."""

    def __init__(self, room: Room, config: rm.AhatConfig) -> None:
        self._camera = _Camera(room, Port.RM_DEPTH_AHAT)
        self._encoder = _encoder(config, rm.AHAT_WIDTH, rm.AHAT_HEIGHT, rm.AHAT_FPS)

    def payload(self, frame_idx: int, time_hns: int, time_s: float) -> bytes:
        """Make a picture of both planes."""
        room, view = self._camera.room, self._camera.look(time_s)
        frame = depth.DepthFrame(
            room.noisy_depth_mm(view, frame_idx, reach_m=AHAT_REACH_M),
            room.active_brightness(view),
        )
        if self._encoder is None:
            encoded = depth.encode_raw_ahat(frame)
        else:
            encoded = self._encoder.encode_planes(depth.pack_ahat_picture(frame))
        return depth.encode_ahat_payload(encoded, _sensor_ticks_ns(time_hns))


class ImuReading:
    """Accelerometer (gravity), gyroscope (the head's turning) or magnetometer, with noise."""

    def __init__(self, room: Room, kind: Port) -> None:
        self._room, self._kind = room, kind
        self._count, self._rate_hz = SAMPLES_PER_PACKET[kind], IMU_RATES_HZ[kind]
        self._extrinsics = room.rig.imu_extrinsics[kind]

    def payload(self, frame_idx: int, time_hns: int, time_s: float) -> bytes:
        """Make one packet's samples: one value, since the head turns slowly, and noise."""
        offsets_ns = (np.arange(self._count) * 1e9 / self._rate_hz).astype(np.uint64)
        noise = self._room.noise(frame_idx).normal(0, 0.02, (self._count, 3))
        soc = np.uint64(time_hns) + offsets_ns // np.uint64(100)
        has_temperature = self._kind != Port.RM_IMU_MAGNETOMETER
        samples = ImuSamples(
            sensor_ticks_ns=np.uint64(_sensor_ticks_ns(time_hns)) + offsets_ns,
            device_time_hns=soc,
            values=(self._value(time_s) + noise).astype(np.float32),
            temperatures=np.full(self._count, 35.0 * has_temperature, np.float32),
        )
        return encode_imu(samples)

    def _value(self, time_s: float) -> NDArray[np.float64]:
        before, after = self._orientation(time_s), self._orientation(time_s + _STEP_S)
        if before is None or after is None:
            return np.zeros(3)
        if self._kind == Port.RM_IMU_GYROSCOPE:
            turn = (before.T @ after - np.eye(3)) / _STEP_S
            return np.degrees([turn[2, 1], turn[0, 2], turn[1, 0]])
        at_rest = (0.0, GRAVITY_MPS2, 0.0)  # the ground pushes up
        in_world = at_rest if self._kind == Port.RM_IMU_ACCELEROMETER else MAGNETIC_FIELD
        return np.asarray(before.T @ np.array(in_world), np.float64)

    def _orientation(self, time_s: float) -> Matrix | None:
        world_from_head = self._room.head_at(time_s)
        if world_from_head is None:
            return None
        return sensor_in_world(world_from_head, self._room.rig, self._extrinsics)[:3, :3]


class EyeReading:
    """Eyes that look about straight ahead; nothing where the head is not known."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def payload(self, frame_idx: int, time_hns: int, time_s: float) -> bytes:
        """Make one sample; tracker space is taken to be the head's axes (right, up, back)."""
        if self._room.head_at(time_s) is None:
            return encode_eye_sample(EyeSample())
        direction = _gaze_direction(time_s).astype(np.float32)
        rays = [
            EyeRay(origin=np.array([x, _EYE_HEIGHT_M, 0.0], np.float32), direction=direction)
            for x in (0.0, -_PUPIL_HALF_DISTANCE_M, _PUPIL_HALF_DISTANCE_M)
        ]
        return encode_eye_sample(
            EyeSample(calibrated=True, combined=rays[0], left=rays[1], right=rays[2])
        )


def _gaze_direction(time_s: float) -> NDArray[np.float64]:
    """Where the eyes look, unit, in the head's axes: about ahead (-z)."""
    yaw, pitch = np.radians([6 * np.sin(time_s * 1.3), 4 * np.sin(time_s * 0.7)])
    ahead = np.array([np.sin(yaw), np.sin(pitch), -1.0])
    return np.asarray(ahead / np.linalg.norm(ahead), np.float64)


class SpatialReading:
    """Head, gaze and right hand (a ball of joints about the room's hand); no left hand."""

    def __init__(self, room: Room, head_pose_at: PoseAt) -> None:
        self._room, self._head_pose_at = room, head_pose_at
        self._payload: bytes | None = None
        spread = np.random.default_rng(room.seed).normal(0, 1, (HAND_JOINT_COUNT, 3))
        self._joints = spread / np.linalg.norm(spread, axis=1, keepdims=True) * HAND_RADIUS_M

    def payload(self, frame_idx: int, time_hns: int, time_s: float) -> bytes:
        """Make one sample; parts that are not known keep their last values, marked invalid."""
        self._payload = encode_spatial_input(self._sample(time_s), self._payload)
        return self._payload

    def _sample(self, time_s: float) -> SpatialInput:
        room_from_head = self._room.head_at(time_s)
        if room_from_head is None:
            return SpatialInput()
        world_from_head = column_matrix(self._head_pose_at(time_s))
        world_from_room = world_from_head @ np.linalg.inv(room_from_head)
        direction = world_from_head[:3, :3] @ _gaze_direction(time_s)
        joints = self._room.hand_position_m(time_s) + self._joints
        return SpatialInput(
            head=head_pose(world_from_head),
            eye=EyeRay(
                origin=world_from_head[:3, 3].astype(np.float32),
                direction=direction.astype(np.float32),
            ),
            right_hand=HandPose(
                orientations=np.tile(np.array((0, 0, 0, 1), np.float32), (HAND_JOINT_COUNT, 1)),
                positions=transform_points(world_from_room, joints).astype(np.float32),
                radii=np.full(HAND_JOINT_COUNT, 0.01, np.float32),
                accuracies=np.zeros(HAND_JOINT_COUNT, np.int32),
            ),
        )


def _encoder(
    config: rm.VlcConfig | rm.AhatConfig, width: int, height: int, fps: int
) -> PictureEncoder | None:
    """Open what a camera's client asked for; None for raw."""
    if config.profile == VideoProfile.RAW:
        return None
    return PictureEncoder(
        EncoderSettings(
            profile=VideoProfile(config.profile),
            width=width,
            height=height,
            frame_rate_hz=Fraction(fps, config.divisor),
            bitrate_bps=config.bitrate_bps,
            gop_size=config.gop_size,
        )
    )


def key_frame_test(profile: int, skip: int = 0) -> Callable[[bytes], bool]:
    """Return what tells a stream's key frames by payload, `skip` bytes into it."""
    return lambda payload: is_keyframe(memoryview(payload)[skip:], profile)
