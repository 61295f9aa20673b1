"""One simulated session: its packets in order of arrival, and its truth.

The same plan, movement and looks come out at every occlusion rate and in every profile; only what
the hands do around completions, and the pictures, differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge

import cv2
import msgspec
import numpy as np

from keystep_capture.errors import ConfigError
from keystep_capture.payloads import encode_png16
from keystep_capture.simulation.camera import colour_camera, depth_camera
from keystep_capture.simulation.imaging import (
    ColourSensor,
    DepthSensor,
    VideoEncoder,
)
from keystep_capture.simulation.layout import make_layout
from keystep_capture.simulation.looking import look
from keystep_capture.simulation.motion import RATE_HZ, choreograph
from keystep_capture.simulation.people import make_person
from keystep_capture.simulation.plan import make_plan
from keystep_capture.simulation.scene import Scene
from keystep_capture.simulation.seeding import generator
from keystep_capture.simulation.sensors import Packet, Source, sensed
from keystep_capture.simulation.tasks import Task, find_task
from keystep_capture.simulation.timing import make_clocks, stamp
from keystep_capture.simulation.truth import SessionTruth

DEPTH_RATE_HZ = 5
_FRAMES_LOST = 0.002  # by the camera: the encoder never saw them


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Sizes and rates; all rates divide 60 Hz."""

    name: str
    width: int
    height: int
    frame_rate_hz: int
    gop_size: int
    motion_rate_hz: int
    depth_scale: float


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="learn", width=320, height=180, frame_rate_hz=10, gop_size=5, motion_rate_hz=30,
            depth_scale=0.5,
        ),
        Profile(
            name="full", width=640, height=360, frame_rate_hz=30, gop_size=15, motion_rate_hz=60,
            depth_scale=1.0,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """What decides a session, bit for bit.

    Attributes:
        task: Name of the task.
        seed: Of scene, people and everything else.
        person: Number of the person; 0 is the expert.
        profile: `learn` or `full`.
        occlusion_rate: Share of completions that the hands hide, 0 to 1.
        mistake_scale: Mistakes and removals relative to each person's own rate.
    """

    task: str
    seed: int
    person: int
    profile: str = "learn"
    occlusion_rate: float = 0.5
    mistake_scale: float = 1.0

    def __post_init__(self) -> None:
        find_task(self.task)
        if self.profile not in PROFILES:
            raise ConfigError(f"no profile {self.profile!r}; known: {', '.join(PROFILES)}")
        if not 0.0 <= self.occlusion_rate <= 1.0:
            raise ConfigError(f"expected an occlusion rate of 0 to 1, got {self.occlusion_rate}")
        if not 0.0 <= self.mistake_scale <= 10.0:
            raise ConfigError(f"expected a mistake scale of 0 to 10, got {self.mistake_scale}")
        if self.person < 0 or self.seed < 0:
            raise ConfigError(f"expected person and seed >= 0, got {self.person} and {self.seed}")

    @property
    def session(self) -> str:
        """The session's id."""
        return f"simulated-{self.task}-{self.seed}-{self.person:03d}"


class Session:
    """A session that can be drawn once.

    Attributes:
        truth: Its frames fill up while `packets` runs.
        movement: Where everything is; true, without the sensors' noise.
        looking: Where head and eyes are; true.
        scene: All that can be drawn.
        camera: The colour camera.
    """

    def __init__(self, spec: SessionSpec, *, limit_s: float | None = None) -> None:
        """Plan, move and look; pictures are drawn by `packets`.

        Args:
            spec: What decides it.
            limit_s: Draw and report this much of it only.
        """
        cv2.setNumThreads(1)  # of this process: one order of arithmetic, and one core
        self.spec, self.profile = spec, PROFILES[spec.profile]
        self.task: Task = find_task(spec.task)
        self.person = make_person(spec.seed, spec.person)
        name = self.person.name
        plan = make_plan(self.task, self.person, spec.seed, mistake_scale=spec.mistake_scale)
        layout = make_layout(self.task, spec.seed, name)
        self.movement = choreograph(
            self.task, plan, self.person, layout, spec.seed, occlusion_rate=spec.occlusion_rate
        )
        self.looking = look(plan, self.person, layout, self.movement, spec.seed)
        self.camera = colour_camera(self.profile.width, self.profile.height)
        self.scene = Scene(layout, self.movement, self.person, self.camera, spec.seed)
        self.end_s = min(plan.duration_s, limit_s or np.inf)
        self.truth = SessionTruth(
            task=self.task,
            plan=plan,
            occluded=self.movement.occluded,
            width=self.profile.width,
            height=self.profile.height,
            frame_rate_hz=self.profile.frame_rate_hz,
        )
        self._source = Source(
            session=spec.session,
            seed=spec.seed,
            person=name,
            clocks=make_clocks(spec.seed, name),
        )

    @property
    def frame_count(self) -> int:
        """Pictures that will be drawn, about."""
        return int(self.end_s * self.profile.frame_rate_hz)

    def packets(self) -> Iterator[Packet]:
        """Draw the session: its packets in order of arrival."""
        small = sensed(self._source, self.looking, self.movement, self.profile.motion_rate_hz)
        ended_ns = int(self.end_s * 1e9) + self._source.clocks.server_ns
        streams = (small, self._colour(), self._depth())
        for packet in merge(*streams, key=lambda packet: packet.receive_time_ns):
            if packet.receive_time_ns <= ended_ns:
                yield packet

    def draw(self, sample: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """One picture by itself, 8-bit RGB (H, W, 3), for looking at."""
        sensor = ColourSensor(
            self.profile.width, self.profile.height, 10, self.spec.seed, self.person.name
        )
        pose = self.looking.world_from_head[sample] @ self.camera.head_from_camera
        return sensor.develop(self.scene.draw(sample, pose).linear)

    def _samples(self, rate_hz: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.arange(0, int(self.end_s * RATE_HZ), RATE_HZ // rate_hz)

    def _colour(self) -> Iterator[Packet]:
        profile, camera, names = self.profile, self.camera, (self.spec.seed, self.person.name)
        samples = self._samples(profile.frame_rate_hz)
        lost = generator(*names, "rgb", "lost").random(len(samples)) < _FRAMES_LOST
        samples = samples[~lost]
        stamps = stamp(
            self.movement.times_s[samples], self._source.clocks, 0.3, 45.0, *names, "rgb"
        )
        sensor = ColourSensor(profile.width, profile.height, profile.frame_rate_hz, *names)
        encoder = VideoEncoder(
            profile.width, profile.height, profile.frame_rate_hz, profile.gop_size
        )
        for idx, sample in enumerate(samples.tolist()):
            pose = self.looking.world_from_head[sample] @ camera.head_from_camera
            picture = self.scene.draw(sample, pose)
            time_s = float(self.movement.times_s[sample])
            self.truth.add_frame(picture, self.scene, int(stamps.device[idx]), time_s)
            payload, keyframe = encoder.encode(sensor.develop(picture.linear))
            header = msgspec.structs.replace(
                self._source.header("rgb", "h264", idx, stamps, idx),
                keyframe=keyframe,
                width=camera.width,
                height=camera.height,
                intrinsics=camera.intrinsics,
                pose=tuple(pose.reshape(-1).tolist()),
            )
            yield Packet(header=header, payload=payload, receive_time_ns=int(stamps.received[idx]))

    def _depth(self) -> Iterator[Packet]:
        camera, names = depth_camera(self.profile.depth_scale), (self.spec.seed, self.person.name)
        samples = self._samples(DEPTH_RATE_HZ)
        stamps = stamp(
            self.movement.times_s[samples], self._source.clocks, 1.0, 60.0, *names, "depth"
        )
        sensor = DepthSensor(*names)
        for idx, sample in enumerate(samples.tolist()):
            pose = self.looking.world_from_head[sample] @ camera.head_from_camera
            distance_m = self.scene.draw_depth(sample, camera, pose)
            header = msgspec.structs.replace(
                self._source.header("depth", "png16", idx, stamps, idx),
                depth_unit_m=0.001,
                width=camera.width,
                height=camera.height,
                intrinsics=camera.intrinsics,
                pose=tuple(pose.reshape(-1).tolist()),
            )
            yield Packet(
                header=header,
                payload=encode_png16(sensor.measure(distance_m)),
                receive_time_ns=int(stamps.received[idx]),
            )
