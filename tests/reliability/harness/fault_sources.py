"""What streams: a simulated headset, a detector that plays a recording, another session."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fault_processes import Server, until
from keystep_capture.errors import KeystepError
from keystep_capture.key_files import DeviceKey, load_device_key
from keystep_capture.samples import (
    find_sample,
    load_detection_rows,
    load_gaze_camera,
    load_sensor_rows,
    load_truth,
)
from keystep_capture.sender import Sender, Source
from keystep_hololens.hl2ss import conventions
from keystep_hololens.simulator import (
    Room,
    SensorSource,
    SimulatedHeadset,
    UnityApp,
    VideoSource,
    VoiceControl,
)

ASSEMBLY, COFFEE = find_sample("industreal-03"), find_sample("pour-coffee")
TRUTH = load_truth(ASSEMBLY)


def worn_headset() -> SimulatedHeadset:
    """A simulated headset that plays on and on: real video, real head and gaze, invented room."""
    rows = load_sensor_rows(ASSEMBLY.sensors_path)  # type: ignore[arg-type]
    sensors = SensorSource(
        rows={n: rows[550 + n] for n in range(60)},
        camera=load_gaze_camera(ASSEMBLY.camera_path),  # type: ignore[arg-type]
        frame_count=60,
        frame_rate_hz=10.0,
        loop=True,
    )
    assert COFFEE.video_path is not None
    return SimulatedHeadset(
        video=VideoSource.open(COFFEE.video_path, loop=True),
        sensors=sensors,
        room=Room(head_at=sensors.head_at),
        app=UnityApp(),
        voice=VoiceControl(),
    )


class Detector:
    """Plays the recording's detections at 10 Hz, or as fast as the server takes them."""

    _frames: list[bytes] = []  # noqa: RUF012 - read once for all tests

    def __init__(
        self, device: str, server: Server, headset: SimulatedHeadset, key: Path | None, kind: str
    ) -> None:
        self._device, self._server, self._headset, self.key = device, server, headset, key
        self._kind = kind
        self._time_ns = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._moving = asyncio.Lock()
        self.frame_idx = 0
        self.playing = False
        self.dial()
        if not self._frames:
            path = ASSEMBLY.detections_path
            assert path is not None
            rows = load_detection_rows(path, frame_count=TRUTH.frame_count)
            self._frames.extend(np.array(list(row), "<f8").tobytes() for row in rows)

    def dial(self) -> None:
        """Start, as a new program does."""
        key = None if self.key is None else load_device_key(self.key)
        source = Source(
            device=self._device,
            client="keystep tests",
            streams=("detections",),
            kind=self._kind,  # type: ignore[arg-type]  # one of the two
            procedure="industreal-assy",
            method="b3",
        )
        self.sender = Sender(
            source, server=self._server.wire, instance=secrets.token_hex(8), key=key
        )
        self._tasks = [asyncio.create_task(self.sender.run()), asyncio.create_task(self._play())]

    async def hang_up(self) -> None:
        """End without a word, as a killed program does."""
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        wrong = [e for e in ends if isinstance(e, Exception) and not isinstance(e, KeystepError)]
        assert not wrong, wrong

    async def jump(self, frame_idx: int) -> None:
        """Send all frames before this one at once."""
        async with self._moving:
            while self.frame_idx < frame_idx:
                await self._send()

    async def _play(self) -> None:
        with suppress(KeystepError):  # refused: the test sees it in the counters
            while True:
                await asyncio.sleep(0.1)
                async with self._moving:
                    if self.playing and self.frame_idx < TRUTH.frame_count:
                        await self._send()

    async def _send(self) -> None:
        await self.sender.room("detections")
        now_ns = conventions.device_time_ns(self._headset.clock.now_hns())
        self._time_ns = max(self._time_ns + 1, now_ns)  # it outlives a headset's clock
        self.sender.offer(
            "detections",
            self._time_ns,
            self._frames[self.frame_idx],
            encoding="detections_f64",
            frame_idx=self.frame_idx,
        )
        self.frame_idx += 1


class Neighbour:
    """Another session on the same server: nothing of a fault may be felt there."""

    def __init__(self, server: Server, key: DeviceKey | None) -> None:
        source = Source(device=key.name if key else "neighbour", client="test", streams=("gaze",))
        self.sender = Sender(source, server=server.wire, instance="neighbour", key=key)
        self._server, self._sent = server, 0
        self._tasks = [asyncio.create_task(self.sender.run()), asyncio.create_task(self._play())]

    async def _play(self) -> None:
        while True:
            await asyncio.sleep(1 / 30)
            if self.sender.session is not None:
                self._sent += 1
                self.sender.offer("gaze", self._sent * 33_333_333, bytes(24), encoding="ray_f32")

    async def check(self) -> None:
        """It is the session that it was; only what waited too long for a dead server is missing."""
        assert self.sender.epoch == 1
        sent = self.sender.sent()["gaze"]

        def came(answer: Any) -> bool:
            lane = answer["stats"]["streams"].get("gaze")
            return lane is not None and lane["packets"] >= sent > 0

        answer = await until(
            lambda: self._server.get(f"/sessions/{self.sender.session}/stats"), came
        )
        assert answer["stats"]["streams"]["gaze"]["lost"] == self.sender.dropped()["gaze"]
        assert answer["state"] == "open"

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
